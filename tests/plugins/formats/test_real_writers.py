"""Checkpoints that other programs wrote, kept in `real/`: each weight is what its own program dequantizes it to.

`python -m benchmarks.foreign_files` makes them anew; `decoded.json` beside each says which program and version did.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from woqfx.loading import open_checkpoint

REAL = Path(__file__).with_name("real")
FOLDERS = sorted(path.parent for path in REAL.glob("*/*/decoded.json"))


def digest(weight):
    """-0 counts as 0: some programs decode by multiplying with ones, which takes the sign away."""
    return hashlib.sha256((weight + 0).contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_weights_are_what_their_own_program_decodes(folder):
    record = json.loads((folder / "decoded.json").read_text())
    stored = open_checkpoint(folder)
    assert stored.weights, "nothing was read packed"
    assert stored.weights.keys() <= record["weights"].keys()
    for name, fact in record["weights"].items():
        held = stored.read_weight(name).dequantize() if name in stored.weights else stored.read_kept(name)
        held = held.to(getattr(torch, fact["dtype"]))  # where it multiplies in 16 bits, it rounds the product once
        assert held.flatten()[:4].tolist() == fact["first"], name
        assert digest(held) == fact["sha256"], name


def test_there_are_files_of_every_writer():
    assert {folder.parent.name for folder in FOLDERS} == {"auto-round", "gptqmodel", "itrex", "llm-compressor"}
