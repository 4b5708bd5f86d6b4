"""A checkpoint as transformers loads it, for `benchmarks.formats`: `read_transformers.py MODEL PROMPTS OUT`.

The library that unpacks the weights (compressed-tensors, bitsandbytes) is the real one; woqfx is not imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main(model: str, prompts: str, out: str) -> None:
    """Greedy tokens and the logits of the first of them, for each prompt of token ids."""
    asked = json.loads(Path(prompts).read_text())
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    tokens, logits = [], []
    for ids in asked["prompts"]:
        prompt = torch.tensor([ids])
        with torch.no_grad():
            logits.append(loaded(prompt).logits[0, -1].float().numpy())
            made = loaded.generate(prompt, max_new_tokens=asked["tokens"], do_sample=False, eos_token_id=None)
        tokens.append(made[0, len(ids) :].tolist())
    np.savez(out, tokens=np.array(tokens), logits=np.stack(logits))


if __name__ == "__main__":
    main(*sys.argv[1:])
