"""Checkpoints that llm-compressor writes of a tiny llama, and what they decode to: `write_llm_compressor.py OUT`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # type: ignore[import-untyped]
from datasets import Dataset  # type: ignore[import-untyped]
from llmcompressor import oneshot  # type: ignore[import-not-found]
from llmcompressor.modifiers.gptq import GPTQModifier  # type: ignore[import-not-found]
from llmcompressor.modifiers.quantization import QuantizationModifier  # type: ignore[import-not-found]
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from written import batches, record, tiny_llama, tiny_tokenizer  # type: ignore[import-not-found]


def integers(bits: int = 4, *, symmetric: bool = True, group_size: int | None = 32, **more: Any) -> QuantizationScheme:
    """Integers, in groups or one scale a row."""
    strategy = "group" if group_size else "channel"
    weights = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group_size, **more)
    return QuantizationScheme(targets=["Linear"], weights=weights)


def nearest(scheme: QuantizationScheme | str) -> Any:
    """Rounding to nearest."""
    if isinstance(scheme, str):
        return QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
    return QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])


def gptq(order: str | None) -> Any:
    """GPTQ, in an order of inputs."""
    return GPTQModifier(config_groups={"group_0": integers(actorder=order)}, ignore=["lm_head"], actorder=order)


CASES: dict[str, Callable[[], Any]] = {
    "w4a16": lambda: nearest(integers()),
    "w4a16-asymmetric": lambda: nearest(integers(symmetric=False)),
    "w3a16": lambda: nearest(integers(3)),
    "w8a16-rows": lambda: nearest(integers(8, group_size=None)),
    "w8a8": lambda: nearest("W8A8"),
    "w4a16-gptq": lambda: gptq(None),
    "w4a16-gptq-actorder-weight": lambda: gptq("weight"),
    "nvfp4a16": lambda: nearest("NVFP4A16"),
    "mxfp4a16": lambda: nearest("MXFP4A16"),
}


def data(name: str) -> dict[str, Any]:
    """Random tokens, for algorithms that look at data."""
    if "gptq" not in name:
        return {}
    rows = batches()
    columns = {"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()}
    return {
        "dataset": Dataset.from_dict(columns),
        "num_calibration_samples": len(rows),
        "max_seq_length": rows.shape[1],
    }


def main(out: str) -> None:
    """Write all cases."""
    who = f"llm-compressor {version('llmcompressor')} with compressed-tensors {version('compressed-tensors')}"
    dense = Path(out) / "dense"
    tiny_llama(torch.bfloat16).save_pretrained(dense)
    for name, recipe in CASES.items():
        folder = Path(out) / name
        model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.bfloat16)
        oneshot(model=model, recipe=recipe(), tokenizer=tiny_tokenizer(), **data(name))
        model.save_pretrained(folder, save_compressed=True)
        read = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, quantization_config=CompressedTensorsConfig(dequantize=True)
        )
        record(folder, who, {f"{name}.weight": one.weight for name, one in read.named_modules() if "proj" in name})
    shutil.rmtree(dense)


if __name__ == "__main__":
    main(*sys.argv[1:])
