"""GGML's blocks against the gguf package's own dequantizer: every bit, for every code."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from woqfx.errors import CheckpointError
from woqfx_formats.codecs.gguf_blocks import BLOCK_TYPES, decode, encode


def blocks(name: str, rows: int = 7, count: int = 5, seed: int = 0) -> np.ndarray:
    """Bytes at random, [rows, bytes of `count` blocks], with scales and offsets that are numbers."""
    kind = BLOCK_TYPES[name]
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows, count * kind.nbytes), dtype=np.uint8)
    fields = data.view(kind.layout)
    for field in ("d", "m"):
        if field in kind.layout.fields:
            fields[field] = (rng.standard_normal((rows, count)) * 0.02).astype(np.float16)
    if "e" in kind.layout.fields:
        fields["e"] = rng.integers(0, 255, (rows, count))
    return data


def reference(name: str, data: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(data, gguf.GGMLQuantizationType[name]))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_decoded_as_gguf_does(name):
    data = blocks(name)
    weight = decode(BLOCK_TYPES[name], torch.from_numpy(data), "w")
    assert weight.scheme == BLOCK_TYPES[name].scheme
    assert torch.equal(weight.dequantize(), reference(name, data))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_the_size_of_a_block_is_ggmls(name):
    elements, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert (elements, nbytes) == (32, BLOCK_TYPES[name].nbytes)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_written_back_the_same_bytes(name):
    data = blocks(name, seed=1)
    weight = decode(BLOCK_TYPES[name], torch.from_numpy(data), "w")
    assert np.array_equal(encode(BLOCK_TYPES[name], weight, "w").numpy(), data)


@pytest.mark.parametrize("name", [name for name in BLOCK_TYPES if name != "IQ4_NL"])  # gguf cannot quantize to it
def test_weights_that_gguf_quantized(name):
    weight = np.random.default_rng(2).standard_normal((8, 160)).astype(np.float32)
    data = gguf.quantize(weight, gguf.GGMLQuantizationType[name])
    read = decode(BLOCK_TYPES[name], torch.from_numpy(data), "w").dequantize()
    assert torch.equal(read, reference(name, data))
    assert float((read - torch.from_numpy(weight)).norm() / np.linalg.norm(weight)) < 0.15


def test_a_stack_of_experts():
    data = blocks("Q4_0").reshape(7, 5, -1)
    weight = decode(BLOCK_TYPES["Q4_0"], torch.from_numpy(data), "w")
    assert weight.shape == (7, 5, 32)
    assert torch.equal(weight.dequantize(), reference("Q4_0", data))


def test_longer_groups_are_written_with_their_scale_repeated():
    data = blocks("Q4_0", count=4)
    data.view(BLOCK_TYPES["Q4_0"].layout)["d"] = np.float16(0.01)
    from dataclasses import replace

    weight = decode(BLOCK_TYPES["Q4_0"], torch.from_numpy(data), "w")
    longer = replace(weight, scheme=replace(weight.scheme, group_size=64), scales=weight.scales[:, ::2].contiguous())
    assert np.array_equal(encode(BLOCK_TYPES["Q4_0"], longer, "w").numpy(), data)


HOSTILE = {
    "infinite-scale": ("Q4_0", "d", np.float16(np.inf)),
    "nan-scale": ("Q8_0", "d", np.float16(np.nan)),
    "infinite-offset": ("Q4_1", "m", np.float16(-np.inf)),
    "nan-offset": ("Q5_1", "m", np.float16(np.nan)),
    "exponent-255": ("MXFP4", "e", 255),
}


@pytest.mark.parametrize(("name", "field", "value"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_number_is_refused(name, field, value):
    data = blocks(name)
    data.view(BLOCK_TYPES[name].layout)[field][1, 2] = value
    with pytest.raises(CheckpointError, match=r"m\.gguf: blk"):
        decode(BLOCK_TYPES[name], torch.from_numpy(data), "m.gguf: blk")
