"""A checkpoint as GPTQModel loads it, for `benchmarks.formats`: `read_gptqmodel.py MODEL PROMPTS OUT`.

Its layers in plain PyTorch, which unpack the weights themselves; woqfx is not imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from gptqmodel import BACKEND, GPTQModel  # type: ignore[import-not-found]


def main(model: str, prompts: str, out: str) -> None:
    """Greedy tokens and the logits of the first of them, for each prompt of token ids."""
    asked = json.loads(Path(prompts).read_text())
    loaded = GPTQModel.load(model, device="cpu", backend=BACKEND.TORCH).model.eval()
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
