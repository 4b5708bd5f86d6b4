"""The codebooks against the tables of their sources, by brute force."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch

import woqfx
from woqfx.nearest import quantize_nearest
from woqfx.plugins import registry


def ocp_e2m1(code: int) -> float:
    """The value of a 4-bit pattern S EE M: exponent bias 1, subnormal at exponent 0 (OCP MX v1.0, table 5)."""
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    magnitude = mantissa / 2 if exponent == 0 else 2 ** (exponent - 1) * (1 + mantissa / 2)
    return -magnitude if sign else magnitude


def test_fp4_e2m1_is_the_ocp_format():
    dtype = registry().dtype("fp4_e2m1")
    assert dtype.levels.tolist() == [ocp_e2m1(code) for code in range(16)]
    assert torch.signbit(dtype.levels).tolist() == [code >= 8 for code in range(16)]


@pytest.mark.parametrize("name", ["fp4_e2m1", "nf4", "fp4_bnb", "fp4_e2m1_itrex", "iq4_nl"])
@pytest.mark.parametrize("group_size", [-1, 1, 16, 32, 100])
def test_the_nearest_level_wins(name, group_size):
    weight = np.random.default_rng(0).normal(0, 0.03, (9, 250)).astype(np.float32)
    weight[3, :40] = 0
    dtype = registry().dtype(name)
    scheme = woqfx.Scheme(name, group_size=group_size, scale_dtype="fp32")
    q = quantize_nearest(torch.from_numpy(weight), dtype, scheme, name="w")
    levels = dtype.levels.double().numpy()
    width = 250 if group_size == -1 else group_size
    for group, start in enumerate(range(0, 250, width)):
        block = weight[:, start : start + width].astype(float)
        amax = np.abs(block).max(1, keepdims=True)
        # A group of zeros is stored as near to zero as can be where no level is 0.
        scale = np.where(amax == 0, 1 if 0 in levels else np.finfo(np.float32).tiny, amax / np.abs(levels).max())
        if name == "iq4_nl":  # its lowest level is its largest: the weight of largest magnitude lands there
            scale = np.where(block.max(1, keepdims=True) > -block.min(1, keepdims=True), -scale, scale)
        np.testing.assert_allclose(q.scales[:, group : group + 1].numpy(), scale, rtol=1e-7)
        distance = np.abs(block[:, :, None] - levels * scale[:, :, None])
        chosen = q.unpacked()[:, start : start + width].numpy()
        taken = np.take_along_axis(distance, chosen[:, :, None].astype(int), 2)[:, :, 0]
        # float32 divides before it compares: a tie within its last bits may fall to either side
        assert np.all(taken <= distance.min(2) + 1e-6 * amax)


def test_halfway_falls_to_the_lower_level():
    halves = torch.tensor([[6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5.0]])
    q = quantize_nearest(halves, registry().dtype("fp4_e2m1"), woqfx.Scheme("fp4_e2m1", scale_dtype="fp32"), name="w")
    lower = [6.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
    assert q.dequantize().tolist() == [lower]


def test_zero_is_plus_zero():
    q = quantize_nearest(torch.tensor([[1.0, -0.0, 0.0, -0.01]]), registry().dtype("fp4_e2m1"),
                         woqfx.Scheme("fp4_e2m1"), name="w")  # fmt: skip
    assert q.unpacked()[0, 1:].tolist() == [0, 0, 0]


def test_nf4_is_quantiles_of_a_normal_distribution():
    """QLoRA, appendix E: 8 levels above and 7 below zero, at even quantiles of N(0, 1), the largest at 1."""
    offset = 0.9677083  # half of the mass beyond the outermost of 15 and of 16 even quantiles: 1 - (1/32 + 1/30) / 2
    quantile = np.vectorize(NormalDist().inv_cdf)
    upper = quantile(np.linspace(offset, 0.5, 9)[:-1])
    lower = -quantile(np.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate((upper, [0], lower))) / upper.max()
    np.testing.assert_allclose(registry().dtype("nf4").levels.numpy(), expected, atol=1e-5)


def test_fp4_bnb_is_bitsandbytes_table():
    functional = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(registry().dtype("fp4_bnb").levels, functional.get_4bit_type("fp4", device="cpu"))


def test_fp4_e2m1_itrex_differs_from_ocp_in_its_subnormal_alone():
    table = registry().dtype("fp4_e2m1_itrex").levels.tolist()
    differing = [code for code in range(16) if table[code] != ocp_e2m1(code)]
    assert [(code, table[code]) for code in differing] == [(1, 0.0625), (9, -0.0625)]


def test_iq4_nl_is_ggml_table():
    quants = pytest.importorskip("gguf.quants")
    assert registry().dtype("iq4_nl").levels.tolist() == list(quants.IQ4_NL.kvalues)
