"""nf4 and double quantization against the real bitsandbytes on the CPU: every bit.

One exception is bitsandbytes' own: its compiled CPU kernel looks 8-bit codes up in a table of 2^16 steps, so that its
thresholds lie up to 1.6e-5 beside the midpoints. Its portable kernel, like its CUDA kernels, takes the nearest code.
woqfx is compared to the portable kernel bit for bit, and to the compiled one within that step.
"""

from __future__ import annotations

import importlib.util
from unittest import mock

import pytest
import torch

import woqfx
from woqfx.doublequant import ScaleCodes, compress, dynamic_map
from woqfx.nearest import quantize_nearest
from woqfx.plugins import registry

functional = pytest.importorskip("bitsandbytes.functional")

SHAPES = {
    "one-group": (1, 64),
    "a-block-of-scales": (64, 256),
    "ragged-blocks-of-scales": (37, 192),
    "tall": (1000, 64),
    "more-than-32768-scales": (1100, 2048),
    "stack": (3, 20, 128),
}
FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def one_thread():
    """bitsandbytes' mean of the scales depends on the number of threads; ours is that of one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal weights whose groups differ in size, some of them all zeros."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(shape, generator=generator) * torch.exp(torch.randn((*shape[:-1], 1), generator=generator))
    rows[..., : shape[-1] // 2][torch.rand(shape[:-1], generator=generator) < 0.05] = 0
    return (rows * 0.02).to(dtype)


def quantize(weight: torch.Tensor, group_size: int, *, double_quant: bool) -> woqfx.QTensor:
    scheme = woqfx.Scheme("nf4", group_size=group_size, scale_dtype="fp32", double_quant=double_quant)
    return quantize_nearest(weight, registry().dtype("nf4"), scheme, name="w")


def swap_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """bitsandbytes keeps the even weight in the high nibble, woqfx in the low one."""
    return (packed << 4) | (packed >> 4)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_nf4(shape, dtype, seed):
    weight = weights(shape, seed, dtype)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    q = quantize(weight, 64, double_quant=False)
    zeros = state.absmax == 0
    assert torch.equal(q.scales.flatten()[~zeros], state.absmax[~zeros])
    assert torch.all(q.scales.flatten()[zeros] == 1)
    assert torch.equal(q.codes.flatten(), swap_nibbles(packed.flatten()))
    theirs = functional.dequantize_4bit(packed, state)
    assert torch.equal(q.dequantize().to(dtype), theirs)


@pytest.mark.parametrize("group_size", [32, 128, 256])
def test_nf4_other_group_sizes(group_size):
    weight = weights((31, 1024), 2)
    packed, state = functional.quantize_4bit(weight, blocksize=group_size, quant_type="nf4")
    q = quantize(weight, group_size, double_quant=False)
    assert torch.equal(q.codes.flatten(), swap_nibbles(packed.flatten()))
    assert torch.equal(q.dequantize(), functional.dequantize_4bit(packed, state))


@pytest.fixture(scope="module")
def portable_quantize_blockwise():
    """bitsandbytes' portable kernel of `quantize_blockwise`, which its compiled one hides."""
    kernels = {}

    def collect(operator, device):
        return lambda function: kernels.setdefault(operator, function)

    spec = importlib.util.find_spec("bitsandbytes.backends.default.ops")
    module = importlib.util.module_from_spec(spec)
    with mock.patch("bitsandbytes._ops.register_kernel", collect):
        spec.loader.exec_module(module)
    return kernels["bitsandbytes::quantize_blockwise"]


def midpoint_distance(scales: torch.Tensor, ours: ScaleCodes, theirs: torch.Tensor) -> torch.Tensor:
    """How far each scale, in its range of -1 to 1, lies from the midpoint of the two codes."""
    value = (scales.flatten() - ours.offset) / ours.ranges.repeat_interleave(256)[: scales.numel()]
    levels = dynamic_map()
    middle = (levels[ours.codes.flatten().int()] + levels[theirs.flatten().int()]) / 2
    return torch.where(ours.codes.flatten() == theirs.flatten(), 0, (value - middle).abs())


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES.values() if shape != (1, 64)], ids=str)
def test_nf4_double_quantized(shape, dtype):
    weight = weights(shape, 3, dtype)
    weight[weight.reshape(-1, 64).eq(0).all(1).repeat_interleave(64).view(shape)] = 0.01  # no groups of zeros
    plain = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")[1]
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    q = quantize(weight, 64, double_quant=True)
    assert isinstance(q.scales, ScaleCodes)
    assert torch.equal(q.codes.flatten(), swap_nibbles(packed.flatten()))
    assert torch.equal(q.scales.offset, state.offset)
    assert torch.equal(q.scales.ranges, state.state2.absmax)
    assert float(midpoint_distance(plain.absmax, q.scales, state.absmax).max()) < 1.6e-5
    assert float((q.scales.codes.flatten() != state.absmax).float().mean()) < 5e-3
    state.absmax, state.dtype = q.scales.codes.flatten(), torch.float32
    assert torch.equal(q.dequantize(), functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 1000, 32768, 40_001, 100_000])
def test_scales_of_any_count(count, portable_quantize_blockwise):
    scales = torch.rand(count, generator=torch.Generator().manual_seed(count)) + 0.01
    ours, offset = compress(scales), scales.mean()
    codes, ranges = portable_quantize_blockwise(scales - offset, functional.create_dynamic_map(), 256)
    assert torch.equal(ours.offset, offset)
    assert torch.equal(ours.ranges, ranges) or count == 1  # their range of zeros is 1e-38
    assert torch.equal(ours.codes, codes)
    expanded = torch.ops.bitsandbytes.dequantize_blockwise(codes, ranges, dynamic_map(), 256, torch.float32)
    assert torch.equal(ours.expand(), expanded + offset)


def test_the_dynamic_map():
    assert torch.equal(dynamic_map(), functional.create_dynamic_map())


def test_the_levels_of_nf4():
    assert torch.equal(registry().dtype("nf4").levels, functional.get_4bit_type("nf4", device="cpu"))
