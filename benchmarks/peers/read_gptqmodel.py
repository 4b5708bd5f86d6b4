"""A checkpoint as GPTQModel loads it, for `benchmarks.formats`: `read_gptqmodel.py MODEL PROMPTS OUT`.

Its layers in plain PyTorch, which unpack the weights themselves; woqfx is not imported.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # else it compiles each layer for minutes

import torch
from answering import answer  # type: ignore[import-not-found]
from gptqmodel import BACKEND, GPTQModel  # type: ignore[import-not-found]


def main(model: str, prompts: str, out: str) -> None:
    """Load and answer."""
    loaded = GPTQModel.load(model, device="cpu", backend=BACKEND.TORCH, dtype=torch.float16).model.eval()
    # Its layers of GPTQ cannot be made in float32, and compute in it all the same.
    answer(torch.nn.Module.float(loaded), prompts, out, f"GPTQModel {version('gptqmodel')}")


if __name__ == "__main__":
    main(*sys.argv[1:])
