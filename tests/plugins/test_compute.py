"""The built-in compute dtypes pass the suite that a stranger's pass, and some numbers of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from woqfx import Scheme, quantize_nearest
from woqfx.plugins import registry
from woqfx.testing import ComputeDTypeSuite
from woqfx_compute.references import BF16, FP32, Int8


class TestFP32(ComputeDTypeSuite):
    compute = FP32()
    tolerance = 1e-6


class TestBF16(ComputeDTypeSuite):
    compute = BF16()
    tolerance = 4e-3


class TestInt8(ComputeDTypeSuite):
    """Two roundings: of x to 1/127 of its group's range, and of codebooks to 1/127 of theirs."""

    compute = Int8()
    tolerance = 1.2e-2


def weight(name: str, symmetric: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """A quantized weight [6, 50] in groups of 16, and its float64 dequantization."""
    source = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    scheme = Scheme(name, group_size=16, symmetric=symmetric)
    q = quantize_nearest(source, registry().dtype(name), scheme, name="w")
    return q, q.dequantize().double()


X = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "symmetric"), [("int8", True), ("int4_clip", False), ("int8", False)])
def test_bf16_rounds_only_x_for_integer_grids(name, symmetric):
    """Codes less their zero are whole numbers up to 255, which bf16 holds; scales are never rounded to it."""
    q, dense = weight(name, symmetric)
    exact = X.bfloat16().double() @ dense.T
    torch.testing.assert_close(BF16().matmul(X, q, None).double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["nf4", "fp4_e2m1"])
def test_bf16_rounds_levels_without_their_scale(name):
    q, dense = weight(name)
    scale = q.params().scale.double().repeat_interleave(16, 1)[:, :50]
    levels = (dense / scale).float().bfloat16().double()
    exact = X.bfloat16().double() @ (levels * scale).T
    torch.testing.assert_close(BF16().matmul(X, q, None).double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "symmetric"), [("int8", True), ("int4_clip", False), ("int4_fullrange", True)])
def test_int8_rounds_only_x_for_integer_grids(name, symmetric):
    """Integer codes are exact in int8 arithmetic: what differs from float64 is x, rounded per token and group."""
    q, dense = weight(name, symmetric)
    rounded = X.double().numpy().copy()
    for start in range(0, 50, 16):
        part = rounded[:, start : start + 16]
        step = np.abs(part).max(1, keepdims=True) / 127
        rounded[:, start : start + 16] = np.rint(part / step) * step
    exact = torch.from_numpy(rounded) @ dense.T
    torch.testing.assert_close(Int8().matmul(X, q, None).double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["nf4", "fp4_e2m1"])
def test_int8_rounds_codebooks_to_127ths(name):
    """With inputs that int8 holds exactly (one to a group), what is left is the rounding of the levels."""
    q, dense = weight(name)
    x = torch.eye(50)
    served = Int8().matmul(x, q, None).double().T
    reach = float(q.dtype.levels.abs().max()) * q.params().scale.double().repeat_interleave(16, 1)[:, :50]
    steps = served / (reach / 127)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert torch.all((served - dense).abs() <= reach / 254 * 1.0001)


OUTLIERS = replace(Scheme("int8", group_size=16), compute_dtype="int8", outlier_threshold=2.0)


def test_outliers_are_not_rounded():
    """LLM.int8(): what is at the threshold or above goes through float32, and no longer widens its group's steps."""
    q, dense = weight("int8")
    x = torch.where(X.abs() >= 2, X * 50, X)
    inner, outer = torch.where(x.abs() < 2, x, 0), torch.where(x.abs() < 2, 0, x)
    expected = Int8().matmul(inner, q, None).double() + outer.double() @ dense.T
    served = Int8().matmul(x, replace(q, scheme=OUTLIERS), None).double()
    torch.testing.assert_close(served, expected, rtol=1e-6, atol=1e-5)
    exact = x.double() @ dense.T
    assert (served - exact).norm() < 0.1 * (Int8().matmul(x, q, None).double() - exact).norm()


def test_a_threshold_that_nothing_reaches_changes_nothing():
    q, _ = weight("nf4")
    far = replace(q, scheme=replace(q.scheme, compute_dtype="int8", outlier_threshold=1e30))
    assert torch.equal(Int8().matmul(X, far, None), Int8().matmul(X, q, None))


def test_outliers_of_one_row_leave_the_others_alone():
    q, _ = weight("int8")
    q = replace(q, scheme=OUTLIERS)
    x = torch.cat([X, 100 * X])
    assert torch.equal(Int8().matmul(x, q, None)[:4], Int8().matmul(X, q, None))
