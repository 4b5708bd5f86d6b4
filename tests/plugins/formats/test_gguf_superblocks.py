"""GGML's super-blocks against the gguf package's own dequantizer: every bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from woqfx.errors import CheckpointError
from woqfx_formats.codecs.gguf_superblocks import SUPER_BLOCK_TYPES, decode


def blocks(name: str, rows: int = 5, count: int = 3) -> np.ndarray:
    """Bytes at random, with scales that are numbers."""
    layout = SUPER_BLOCK_TYPES[name].layout
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (rows, count * layout.itemsize), dtype=np.uint8)
    fields = data.view(layout)
    for field in {"d", "dmin"} & set(layout.fields):
        fields[field] = (rng.standard_normal((rows, count)) * 0.02).astype(np.float16)
    return data


@pytest.mark.parametrize("name", SUPER_BLOCK_TYPES)
def test_decoded_as_gguf_does(name):
    data = blocks(name)
    kind = SUPER_BLOCK_TYPES[name]
    weight = decode(kind, torch.from_numpy(data), "w")
    assert weight.scheme == kind.scheme
    expected = torch.from_numpy(gguf.dequantize(data, gguf.GGMLQuantizationType[name]))
    assert torch.equal(weight.dequantize(), expected)


@pytest.mark.parametrize("name", SUPER_BLOCK_TYPES)
def test_the_size_of_a_block_is_ggmls(name):
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert size == (256, SUPER_BLOCK_TYPES[name].layout.itemsize)


@pytest.mark.parametrize("name", SUPER_BLOCK_TYPES)
def test_an_infinite_scale_is_refused(name):
    data = blocks(name)
    data.view(SUPER_BLOCK_TYPES[name].layout)["d"][1, 1] = np.inf
    with pytest.raises(CheckpointError, match=r"m\.gguf: blk"):
        decode(SUPER_BLOCK_TYPES[name], torch.from_numpy(data), "m.gguf: blk")
