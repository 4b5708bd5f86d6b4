"""RTN's `mse_range` against a search by brute force, a group and a ratio at a time."""

from __future__ import annotations

import pytest
import torch

import woqfx
from woqfx.plugins import registry
from woqfx_rtn.rtn import RTN, RTNOptions

RATIOS = [1 - step / 200 for step in range(40)]
DTYPES = ["int8", "int4_clip", "int4_fullrange", "nf4", "fp4_e2m1"]


def search(weight: torch.Tensor, scheme: woqfx.Scheme, *, mse_range: bool) -> woqfx.QTensor:
    layer = woqfx.Layer("w", weight, scheme, registry().dtype(scheme.dtype))
    return RTN(RTNOptions(mse_range=mse_range)).round(layer)


def error(weight: torch.Tensor, q: woqfx.QTensor) -> float:
    return float((q.dequantize().double() - weight.double()).square().sum())


@pytest.mark.parametrize("group_size", [16, 32, -1])
@pytest.mark.parametrize(
    ("name", "symmetric"),
    [(name, True) for name in DTYPES] + [(name, False) for name in DTYPES if name.startswith("int")],
)
def test_each_group_takes_its_best_ratio(name, symmetric, group_size):
    dtype = registry().dtype(name)
    weight = torch.randn(3, 70, generator=torch.Generator().manual_seed(5))
    weight[1] *= 1e-3
    scheme = woqfx.Scheme(name, group_size=group_size, symmetric=symmetric)
    q = search(weight, scheme, mse_range=True)
    width = scheme.group_width(70)
    for row in range(3):
        for group, start in enumerate(range(0, 70, width)):
            block = weight[row, start : start + width]
            candidates = []
            for ratio in RATIOS:
                params = dtype.fit(block, symmetric=symmetric, shrink=ratio).stored_as("fp16")
                restored = dtype.decode(dtype.encode(block, params), params)
                candidates.append((float((restored.double() - block.double()).square().sum()), float(params.scale)))
            least = min(candidates)[0]
            taken = q.dequantize()[row, start : start + width].double() - block.double()
            assert float(q.scales[row, group]) in [scale for _, scale in candidates]
            assert float(taken.square().sum()) <= least * (1 + 1e-5)


def test_it_is_never_worse_and_usually_better():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(6))
    for name in DTYPES:
        scheme = woqfx.Scheme(name)
        plain, searched = (error(weight, search(weight, scheme, mse_range=flag)) for flag in (False, True))
        assert searched <= plain
        assert name == "int8" or searched < 0.97 * plain


def test_a_tie_takes_the_whole_range():
    weight = torch.tensor([[7.0, -7.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    q = search(weight, woqfx.Scheme("int4_clip", scale_dtype="fp32"), mse_range=True)
    assert q.scales.tolist() == [[1.0], [1.0]]
    assert torch.equal(q.dequantize(), weight)
