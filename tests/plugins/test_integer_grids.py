"""The integer grids against Intel Neural Compressor's formulas, written out here in numpy, a group at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import woqfx
from woqfx.nearest import quantize_nearest
from woqfx.plugins import registry

BITS = {"int8": 8, "int7": 7, "int6": 6, "int5": 5, "int4_clip": 4, "int4_fullrange": 4, "int3": 3, "int2": 2}
K = 250
GROUP_SIZES = (-1, 1, 16, 32, 100, 1000)


def reference(weight: np.ndarray, name: str, group_size: int, symmetric: bool, storage: type):
    """Codes, scales, zeros and the weights they stand for. All float arithmetic is float32, rounding half to even."""
    bits = BITS[name]
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    width = weight.shape[1] if group_size == -1 else group_size
    codes = np.zeros(weight.shape, int)
    scales, zeros, restored = [], [], np.zeros_like(weight)
    for row, values in enumerate(weight):
        for start in range(0, len(values), width):
            group = values[start : start + width]
            smallest, largest = min(group), max(group)
            zero = -low
            if not symmetric:
                smallest, largest = min(smallest, np.float32(0)), max(largest, np.float32(0))
                scale = (largest - smallest) / np.float32(2**bits - 1)
                zero = 0 if scale == 0 else int(np.rint(-smallest / scale))
            elif name == "int4_fullrange":
                amax = max(abs(smallest), abs(largest))
                scale = amax / np.float32(2 ** (bits - 1))
                # The original compares |max| with |min|, which fails for groups of one positive value.
                scale = -scale if largest > -smallest else scale
            else:
                scale = max(abs(smallest), abs(largest)) / np.float32(high)
            scale = np.float32(1) if scale == 0 else np.float32(storage(scale))
            steps = np.rint(group / scale) + zero
            code = np.clip(steps, 0, high - low).astype(int)
            codes[row, start : start + width] = code
            restored[row, start : start + width] = (code - zero).astype(np.float32) * scale
            scales.append(scale)
            zeros.append(zero)
    grid = (len(weight), -(-weight.shape[1] // width))
    return codes, np.array(scales).reshape(grid), np.array(zeros).reshape(grid), restored


def normal() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.03, (7, K)).astype(np.float32)


def ties() -> np.ndarray:
    """Whole and half steps: the largest of each group makes the step 1, so that every second weight is a tie."""
    weight = np.random.default_rng(1).integers(-14, 15, (7, K)).astype(np.float32) / 2
    weight[:, ::16] = 7
    return weight


def one_sided() -> np.ndarray:
    """Rows above zero, below zero, and all zero: zero points at both ends."""
    weight = np.abs(normal())
    weight[1::3] *= -1
    weight[2::3] = 0
    return weight


@pytest.mark.parametrize("weights", [normal, ties, one_sided])
@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("name", BITS)
def test_every_code_scale_and_zero(name, group_size, symmetric, weights):
    weight = weights()
    scheme = woqfx.Scheme(name, group_size=group_size, symmetric=symmetric, scale_dtype="fp32")
    q = quantize_nearest(torch.from_numpy(weight), registry().dtype(name), scheme, name="w")
    codes, scales, zeros, restored = reference(weight, name, min(group_size, K), symmetric, np.float32)
    np.testing.assert_array_equal(q.scales.numpy(), scales)
    if symmetric:
        assert q.zeros is None
    else:
        np.testing.assert_array_equal(q.zeros.numpy(), zeros)
    np.testing.assert_array_equal(q.unpacked().numpy(), codes)
    np.testing.assert_array_equal(q.dequantize().numpy(), restored)


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("name", BITS)
def test_codes_are_chosen_for_the_scale_that_is_stored(name, symmetric):
    weight = normal()
    scheme = woqfx.Scheme(name, symmetric=symmetric, scale_dtype="fp16")
    q = quantize_nearest(torch.from_numpy(weight), registry().dtype(name), scheme, name="w")
    codes, scales, _, restored = reference(weight, name, 32, symmetric, np.float16)
    assert q.scales.dtype == torch.float16
    np.testing.assert_array_equal(q.scales.float().numpy(), scales)
    np.testing.assert_array_equal(q.unpacked().numpy(), codes)
    np.testing.assert_array_equal(q.dequantize().numpy(), restored)


def test_fullrange_puts_the_extreme_on_minus_eight():
    for extreme in (3.0, -3.0):
        weight = torch.tensor([[extreme, -extreme / 2, extreme / 4, 0.0]])
        scheme = woqfx.Scheme("int4_fullrange", scale_dtype="fp32")
        q = quantize_nearest(weight, registry().dtype("int4_fullrange"), scheme, name="w")
        assert q.unpacked().tolist() == [[0, 12, 6, 8]]
        assert q.scales.item() == -extreme / 8
        assert torch.equal(q.dequantize(), weight)


def test_clip_uses_fifteen_values():
    weight = torch.linspace(-1, 1, 1001).view(1, -1)
    scheme = woqfx.Scheme("int4_clip", group_size=-1, scale_dtype="fp32")
    q = quantize_nearest(weight, registry().dtype("int4_clip"), scheme, name="w")
    assert q.unpacked().unique().tolist() == list(range(1, 16))
