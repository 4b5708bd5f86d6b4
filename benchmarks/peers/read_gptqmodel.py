"""A checkpoint as GPTQModel loads it, for `benchmarks.formats`: `read_gptqmodel.py MODEL PROMPTS OUT`.

Its layers in plain PyTorch, which unpack the weights themselves; woqfx is not imported.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

import torch
from answering import answer  # type: ignore[import-not-found]
from gptqmodel import BACKEND, GPTQModel  # type: ignore[import-not-found]


def main(model: str, prompts: str, out: str) -> None:
    """Load and answer."""
    loaded = GPTQModel.load(model, device="cpu", backend=BACKEND.TORCH, dtype=torch.float32).model.eval()
    answer(loaded, prompts, out, f"GPTQModel {version('gptqmodel')}")


if __name__ == "__main__":
    main(*sys.argv[1:])
