"""The search for scales against brute force in float64, a group at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from woqfx import Scheme, fit_to_data, quantize_nearest, registry
from woqfx.clipping import candidate_ratios, data_fit

GRIDS = [("int4_clip", True), ("int4_clip", False), ("int4_fullrange", True), ("nf4", True), ("fp4_e2m1", True)]
IDS = ["int4_clip", "int4_clip-asym", "int4_fullrange", "nf4", "fp4_e2m1"]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def second_moments(k: int, seed: int = 1) -> torch.Tensor:
    """Of inputs that differ in size and depend on each other."""
    x = draw(4 * k, k, seed=seed) @ (torch.eye(k) + 0.3 * draw(k, k, seed=seed + 1)) * torch.linspace(0.1, 3, k)
    return x.T @ x / len(x)


def cost(weight: torch.Tensor, stored: torch.Tensor, moments: torch.Tensor) -> float:
    off = weight.double().numpy() - stored.double().numpy()
    return float(off @ moments.double().numpy() @ off)


@pytest.mark.parametrize(("name", "symmetric"), GRIDS, ids=IDS)
@pytest.mark.parametrize("whole", [False, True], ids=["diagonal", "block"])
def test_no_ratio_is_better_for_any_group(name, symmetric, whole):
    dtype, scheme = registry().dtype(name), Scheme(name, group_size=16, symmetric=symmetric)
    weight, moments = draw(3, 40), second_moments(40)
    q = quantize_nearest(
        weight, dtype, scheme, name="w", fit=data_fit(moments if whole else moments.diagonal(), dtype, scheme)
    )
    judge = moments if whole else torch.diag(moments.diagonal())
    for row in range(3):
        for columns in (slice(0, 16), slice(16, 32), slice(32, 40)):
            group, metric = weight[row, columns], judge[columns, columns]
            found = cost(group, q.dequantize()[row, columns], metric)
            for ratio in candidate_ratios(dtype, scheme):
                params = dtype.fit(group, symmetric=symmetric, shrink=ratio).stored_as("fp16")
                assert found <= cost(group, dtype.decode(dtype.encode(group, params), params), metric) * (1 + 1e-5)


@pytest.mark.parametrize(("name", "symmetric"), [g for g in GRIDS if g[1]], ids=[i for i in IDS if "asym" not in i])
def test_it_comes_near_the_best_of_all_scales(name, symmetric):
    """Within 3 % of the least cost that any of two thousand scales gives, of either sign for a lopsided grid."""
    dtype, scheme = registry().dtype(name), Scheme(name, group_size=32, scale_dtype="fp32")
    weight, weights = draw(40, 32), draw(32, seed=5).square() + 0.05
    params = fit_to_data(weight.unsqueeze(1), weights.unsqueeze(0), dtype, scheme)
    levels = np.arange(-8, 8) if dtype.levels is None else dtype.levels.double().numpy()
    found = best = 0.0
    for row, scale in zip(weight.double().numpy(), params.scale[:, 0].tolist(), strict=True):
        reach = np.abs(row).max() / np.abs(levels).max()
        scales = np.linspace(0.4, 1.3, 2000) * reach
        scales = np.concatenate([[scale], scales] + ([-scales] if name != "int4_clip" else []))
        grid = scales[:, None, None] * levels
        costs = ((row[:, None] - grid) ** 2).min(-1) @ weights.double().numpy()
        found, best = found + costs[0], best + costs.min()
    assert found <= 1.03 * best


def test_a_group_of_zeros_stays_so():
    dtype, scheme = registry().dtype("int4_fullrange"), Scheme("int4_fullrange")
    params = fit_to_data(torch.zeros(2, 1, 32), torch.ones(1, 32), dtype, scheme)
    assert torch.equal(params.scale, torch.ones(2, 1))


def test_inputs_that_were_never_seen_do_not_break_a_group():
    dtype, scheme = registry().dtype("nf4"), Scheme("nf4")
    weight = draw(4, 64)
    q = quantize_nearest(weight, dtype, scheme, name="w", fit=data_fit(torch.zeros(64), dtype, scheme))
    assert torch.isfinite(q.dequantize()).all()
