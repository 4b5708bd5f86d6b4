"""Quantize a folder with auto-round and write what it made as float weights. Runs in the peer's environment.

The last line on standard error is a JSON object with the seconds that auto-round's own call took.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
from auto_round import AutoRound  # type: ignore[import-not-found]
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Quantize what the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("tokens", help="a safetensors file with `calibration` int64 [samples, length]")
    parser.add_argument("out")
    parser.add_argument("--iterations", type=int, default=200)
    arguments = parser.parse_args()
    rows = load_file(arguments.tokens)["calibration"]
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    start = time.perf_counter()
    rounder = AutoRound(
        model,
        tokenizer,
        bits=4,
        group_size=32,
        sym=True,
        iters=arguments.iterations,
        nsamples=len(rows),
        seqlen=rows.shape[1],
        batch_size=8,
        dataset=[{"input_ids": row.unsqueeze(0), "attention_mask": torch.ones_like(row).unsqueeze(0)} for row in rows],
        device_map="cpu",
        amp=False,
    )
    quantized, _ = rounder.quantize()
    seconds = time.perf_counter() - start
    quantized.float().save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(json.dumps({"call_seconds": seconds}), file=sys.stderr)


if __name__ == "__main__":
    main()
