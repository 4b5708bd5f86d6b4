"""bitsandbytes' codes and scales, both ways, against bitsandbytes itself."""

from __future__ import annotations

import json

import pytest
import torch

from woqfx.errors import CheckpointError
from woqfx.nearest import quantize_nearest
from woqfx.plugins import registry
from woqfx.scheme import Scheme
from woqfx_formats.codecs import bitsandbytes4, bitsandbytes8
from woqfx_formats.codecs.bitsandbytes4 import STATE, QuantState

functional = pytest.importorskip("bitsandbytes.functional")
# Its compiled CPU kernel begins a new block with every row, which its writer, like its other kernels, does not do.
portable = pytest.importorskip("bitsandbytes.backends.default.ops")

SHAPES = {
    "rows-of-blocks": (24, 256),
    "blocks-over-two-rows": (10, 32),
    "blocks-over-row-ends": (12, 96),
    "last-block-short": (3, 80),
    "odd-rows": (6, 45),
}


def _stored(shape, quant_type, nested, blocksize=64, dtype=torch.float32):
    """A weight as bitsandbytes stores it: its tensors by suffix, and what it makes of them."""
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=dtype)
    codes, state = functional.quantize_4bit(
        weight, blocksize=blocksize, quant_type=quant_type, compress_statistics=nested
    )
    parts = state.as_dict(packed=True) | {"": codes}
    scales = state.absmax
    if nested:
        scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return parts, portable._dequantize_4bit_compute(codes.flatten(), scales, state.code, blocksize, shape, dtype)


def _decoded(parts):
    (key,) = (name for name in parts if name.startswith(STATE))
    state = QuantState.parse(bytes(parts[key].tolist()), "w")
    wanted = state.parts()
    assert {suffix: (t.dtype, tuple(t.shape)) for suffix, t in parts.items() if suffix in wanted} == wanted
    scheme = state.scheme(parts.get("nested_quant_map"))
    return bitsandbytes4.decode(state, scheme, parts, "w")


@pytest.mark.parametrize("nested", [False, True], ids=["plain-scales", "nested-scales"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_decoded_weights_are_bitsandbytes_own(shape, quant_type, nested):
    parts, expected = _stored(shape, quant_type, nested)
    assert torch.equal(_decoded(parts).dequantize(), expected)


@pytest.mark.parametrize("blocksize", [32, 128, 4096])
def test_other_block_sizes(blocksize):
    parts, expected = _stored((16, 512), "nf4", False, blocksize)
    assert torch.equal(_decoded(parts).dequantize(), expected)


def test_nested_scales_stay_nested():
    parts, _ = _stored((24, 256), "nf4", True)
    assert _decoded(parts).scheme == Scheme("nf4", 64, scale_dtype="fp32", double_quant=True)


def test_another_nested_map_becomes_plain_scales():
    parts, _ = _stored((24, 256), "nf4", True)
    parts["nested_quant_map"] = torch.linspace(-1, 1, 256)
    offset = json.loads(bytes(parts[STATE + "nf4"].tolist()))["nested_offset"]
    ranges = parts["nested_absmax"].repeat_interleave(256)[: parts["absmax"].numel()]
    scales = parts["nested_quant_map"][parts["absmax"].long()] * ranges + offset
    decoded = _decoded(parts)
    assert not decoded.scheme.double_quant
    assert torch.equal(decoded.scales.flatten(), scales)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_codes_seen_as_floats(storage):
    parts, expected = _stored((24, 256), "nf4", False)
    parts[""] = parts[""].flatten().view(storage).unsqueeze(1)
    assert torch.equal(_decoded(parts).dequantize(), expected)


@pytest.mark.parametrize("nested", [False, True], ids=["plain-scales", "nested-scales"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_written_and_read_the_same_bytes(quant_type, nested):
    parts, _ = _stored((24, 256), quant_type, nested, dtype=torch.bfloat16)
    decoded = _decoded(parts)
    again = {**bitsandbytes4.encode(decoded), **bitsandbytes4.encode_state(decoded, torch.bfloat16)}
    assert set(again) == set(parts)
    for suffix, tensor in parts.items():
        assert torch.equal(again[suffix], tensor), suffix


@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "double-quantized"])
def test_bitsandbytes_reads_what_is_written(double_quant):
    torch.manual_seed(1)
    scheme = Scheme("nf4", 128, scale_dtype="fp32" if double_quant else "fp16", double_quant=double_quant)
    weight = quantize_nearest(torch.randn(20, 512), registry().dtype("nf4"), scheme, name="w")
    parts = {**bitsandbytes4.encode(weight), **bitsandbytes4.encode_state(weight, torch.float32)}
    codes = parts.pop("")
    state = functional.QuantState.from_dict(parts, torch.device("cpu"))
    assert torch.equal(functional.dequantize_4bit(codes, state), weight.dequantize())


def test_int8_rows():
    torch.manual_seed(0)
    codes, rows, _ = functional.int8_vectorwise_quant(torch.randn(24, 96, dtype=torch.float16))
    scheme = bitsandbytes8.scheme(6.0)
    decoded = bitsandbytes8.decode(scheme, {"": codes, "SCB": rows}, "w").dequantize()
    expected = functional.int8_vectorwise_dequant(codes, rows)
    # One product is associated otherwise: (q SCB) / 127 there, q (SCB / 127) here.
    assert torch.allclose(decoded, expected, rtol=2**-22, atol=0)
    assert scheme.outlier_threshold == 6.0


FORGED = {
    "not-json": b"\xff\x00",
    "a-list": b"[1]",
    "deep": b"[" * 60_000,
    "no-shape": b'{"quant_type": "nf4", "dtype": "float32", "blocksize": 64}',
    "three-dimensions": b'{"quant_type": "nf4", "dtype": "float32", "blocksize": 64, "shape": [1, 2, 3]}',
    "shape-of-2^63": b'{"quant_type": "nf4", "dtype": "float32", "blocksize": 64, "shape": [9223372036854775807, 2]}',
    "negative-shape": b'{"quant_type": "nf4", "dtype": "float32", "blocksize": 64, "shape": [-4, 64]}',
    "block-of-0": b'{"quant_type": "nf4", "dtype": "float32", "blocksize": 0, "shape": [4, 64]}',
    "block-true": b'{"quant_type": "nf4", "dtype": "float32", "blocksize": true, "shape": [4, 64]}',
    "unknown-type": b'{"quant_type": "af4", "dtype": "float32", "blocksize": 64, "shape": [4, 64]}',
    "list-for-a-type": b'{"quant_type": ["nf4"], "dtype": "float32", "blocksize": 64, "shape": [4, 64]}',
    "unknown-dtype": b'{"quant_type": "nf4", "dtype": "__class__", "blocksize": 64, "shape": [4, 64]}',
    "nested-block-of-0": b'{"quant_type": "nf4", "dtype": "float32", "blocksize": 64, "shape": [4, 64], '
    b'"nested_blocksize": 0}',
    "infinite-offset": b'{"quant_type": "nf4", "dtype": "float32", "blocksize": 64, "shape": [4, 64], '
    b'"nested_blocksize": 256, "nested_offset": Infinity}',
    "text-for-an-offset": b'{"quant_type": "nf4", "dtype": "float32", "blocksize": 64, "shape": [4, 64], '
    b'"nested_blocksize": 256, "nested_offset": "1"}',
}


@pytest.mark.parametrize("text", FORGED.values(), ids=FORGED)
def test_forged_states_are_refused(text):
    with pytest.raises(CheckpointError, match=r"file\.safetensors: w"):
        QuantState.parse(text, "file.safetensors: w")


def test_another_table_is_refused():
    parts, _ = _stored((24, 256), "nf4", False)
    parts["quant_map"] = parts["quant_map"].flip(0)
    with pytest.raises(CheckpointError, match="quant_map is not"):
        _decoded(parts)


def test_a_scale_that_is_no_number_is_refused():
    parts, _ = _stored((24, 256), "nf4", False)
    parts["absmax"][3] = torch.nan
    with pytest.raises(CheckpointError, match="scale is not finite"):
        _decoded(parts)
