"""GPTQ against the formulas of the paper, a column at a time in float64, and its invariants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_blocks import make_block

from woqfx import (
    Call,
    GroupParams,
    Layer,
    QTensor,
    Scheme,
    Statistics,
    WoqfxError,
    fit_to_data,
    quantize_nearest,
    registry,
)
from woqfx.blocks.importance import token_importance
from woqfx.blocks.statistics import collect, find_groups
from woqfx.testing import AlgorithmSuite
from woqfx_gptq.gptq import GPTQ, GPTQOptions

GRIDS = [("int4_clip", True), ("int4_clip", False), ("int4_fullrange", True), ("nf4", True), ("fp4_e2m1", True)]
IDS = ["int4_clip", "int4_clip-asym", "int4_fullrange", "nf4", "fp4_e2m1"]


class TestGPTQWithoutData(AlgorithmSuite):
    algorithm = GPTQ
    variants = (GPTQOptions(),)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(k: int, tokens: int = 400, seed: int = 1) -> Statistics:
    """Of inputs that differ in size and depend on each other."""
    sizes = torch.linspace(0.2, 2, k)[draw(k, seed=seed + 2).argsort()]
    x = (draw(tokens, k, seed=seed) @ (torch.eye(k) + 0.3 * draw(k, k, seed=seed + 1))) * sizes
    return Statistics(tokens, x.T @ x / tokens, x.mean(0), x.abs().mean(0))


def layer(weight: torch.Tensor, seen: Statistics, name: str = "int4_fullrange", **scheme) -> Layer:
    return Layer("w", weight, Scheme(name, **{"group_size": 16, **scheme}), registry().dtype(name), seen)


def loss(weight: torch.Tensor, q: QTensor, seen: Statistics) -> float:
    off = (q.dequantize() - weight).double()
    return float(((off @ seen.moments.double()) * off).sum())


def nearest(one: Layer) -> QTensor:
    return quantize_nearest(one.weight, one.dtype, one.scheme, name="w")


def as_in_the_paper(one: Layer, order: np.ndarray, damp: float) -> np.ndarray:
    """Optimal brain quantization in a fixed order: after each column the inverse Hessian loses it by elimination.

    Groups are fitted by `fit_to_data`, whose own test is elsewhere, to the weights as they are and to what each column
    costs once the earlier ones are gone. Gives the codes in the weight's own order.
    """
    weight, width = one.weight.double().numpy()[:, order].copy(), one.scheme.group_size
    hessian = one.inputs.moments.double().numpy()[np.ix_(order, order)]
    inverse = np.linalg.inv(hessian + damp * hessian.diagonal().mean() * np.eye(len(order)))
    steps = []
    for i in range(len(order)):  # the inverse of what is left when column i comes
        steps.append(inverse.copy())
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    codes = np.zeros(weight.shape, np.uint8)
    params: GroupParams | None = None
    for i, group in enumerate(order // width):
        if i == 0 or group != order[i - 1] // width:
            mine = [j for j in range(len(order)) if order[j] // width == group]
            costs = torch.tensor([[1 / steps[j][j, j] for j in mine]]).float()
            params = fit_to_data(torch.from_numpy(weight[:, mine]).float().unsqueeze(1), costs, one.dtype, one.scheme)
            params = GroupParams(params.scale[:, 0], None if params.zero is None else params.zero[:, 0])
        column = torch.from_numpy(weight[:, i]).float().unsqueeze(1)
        code = one.dtype.encode(column, params)
        codes[:, order[i]] = code[:, 0]
        error = (weight[:, i] - one.dtype.decode(code, params)[:, 0].double().numpy()) / steps[i][i, i]
        weight[:, i + 1 :] -= np.outer(error, steps[i][i, i + 1 :])
    return codes


@pytest.mark.parametrize(("name", "symmetric"), GRIDS, ids=IDS)
@pytest.mark.parametrize("aware", [False, True], ids=["in-order", "group-aware"])
def test_the_formulas_of_the_paper(name, symmetric, aware):
    one = layer(draw(6, 72), inputs(72), name, symmetric=symmetric, scale_dtype="fp32")
    diagonal = one.inputs.moments.diagonal().numpy()
    groups = [np.arange(start, min(start + 16, 72)) for start in range(0, 72, 16)]
    if aware:
        groups = [group[np.argsort(-diagonal[group], kind="stable")] for group in groups]
        groups.sort(key=lambda group: -diagonal[group].max())
    q = GPTQ(GPTQOptions(act_group_aware=aware, damp_percent=0.02, blocksize=32)).round(one)
    expected = as_in_the_paper(one, np.concatenate(groups), 0.02)
    # A number within rounding of halfway between two codes may go either way, and take the rest of its row along.
    assert (q.unpacked().numpy() == expected).mean() > 0.97


@pytest.mark.parametrize(("name", "symmetric"), GRIDS, ids=IDS)
def test_the_output_is_nearer_than_that_of_the_nearest(name, symmetric):
    seen, weight = inputs(128, tokens=1000), draw(32, 128)
    one = layer(weight, seen, name, symmetric=symmetric, group_size=32)
    for options in (GPTQOptions(), GPTQOptions(desc_act=True), GPTQOptions(static_groups=True)):
        assert loss(weight, GPTQ(options).round(one), seen) < 0.6 * loss(weight, nearest(one), seen)


@pytest.mark.parametrize("group_size", [16, 128, -1], ids=str)
def test_the_blocksize_changes_nothing(group_size):
    one = layer(draw(8, 200), inputs(200), group_size=group_size)
    results = [GPTQ(GPTQOptions(blocksize=size)).round(one).dequantize() for size in (8, 48, 1000)]
    for other in results[1:]:
        assert (results[0] != other).float().mean() < 0.02  # but for numbers within rounding of halfway


@pytest.mark.parametrize(("static", "stored"), [(False, True), (True, False)], ids=["dynamic", "static"])
def test_desc_act_stores_its_order_only_where_groups_need_it(static, stored):
    seen = inputs(80)
    one = layer(draw(8, 80), seen)
    algorithm = GPTQ(GPTQOptions(desc_act=True, static_groups=static))
    q = algorithm.round(one)
    assert algorithm.ordered == stored == (q.order is not None)
    if q.order is not None:
        sizes = seen.moments.diagonal()[q.order.long()]
        assert bool((sizes[:-1] >= sizes[1:]).all())


def test_inputs_that_do_not_depend_on_each_other_leave_nothing_to_make_up_for():
    weight, sizes = draw(8, 64), torch.linspace(0.5, 2, 64)
    seen = Statistics(100, torch.diag(sizes), torch.zeros(64), sizes)
    one = layer(weight, seen, scale_dtype="fp32")
    q = GPTQ(GPTQOptions(damp_percent=0.0)).round(one)
    params = fit_to_data(weight.view(8, 4, 16), sizes.view(4, 16), one.dtype, one.scheme)
    assert torch.equal(q.unpacked(), one.dtype.encode(weight.view(8, 4, 16), params).view(8, 64))


def test_columns_without_inputs_are_rounded_to_the_nearest():
    seen = inputs(64)
    moments = seen.moments.clone()
    moments[[3, 40]] = 0
    moments[:, [3, 40]] = 0
    one = layer(draw(8, 64), Statistics(400, moments, seen.mean, seen.mean_abs))
    q = GPTQ().round(one)
    for column in (3, 40):
        params = GroupParams(q.scales[:, column // 16].float())
        code = one.dtype.encode(one.weight[:, column : column + 1], params)
        assert torch.equal(q.unpacked()[:, column], code[:, 0])


def test_damping_grows_until_it_does():
    """Fewer tokens than inputs: without damping there is no inverse."""
    notes: dict[str, float] = {}
    seen = inputs(64, tokens=20)
    one = Layer("w", draw(8, 64), Scheme("nf4"), registry().dtype("nf4"), seen, lambda **facts: notes.update(facts))
    q = GPTQ(GPTQOptions(damp_percent=0.0)).round(one)
    assert 0 < notes["damp_percent"] < 0.1
    assert loss(one.weight, q, seen) < loss(one.weight, nearest(one), seen)


def test_without_data_it_rounds_to_the_nearest_and_says_so():
    notes: dict[str, str] = {}
    one = Layer("w", draw(8, 64), Scheme("nf4"), registry().dtype("nf4"), None, lambda **facts: notes.update(facts))
    assert torch.equal(GPTQ().round(one).codes, nearest(one).codes)
    assert "nearest" in notes["fallback"]


def test_inputs_that_are_not_finite_are_an_error():
    seen = inputs(64)
    broken = Statistics(400, seen.moments * float("inf"), seen.mean, seen.mean_abs)
    with pytest.raises(WoqfxError, match="not finite"):
        GPTQ().round(layer(draw(8, 64), broken))


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_bad_weight_is_named(value):
    weight = draw(8, 64)
    weight[3, 21] = value
    with pytest.raises(WoqfxError, match=r"w: weight \[3, 21\]"):
        GPTQ().round(layer(weight, inputs(64)))


def test_the_token_that_all_look_at_is_not_given_up_for_the_many():
    """Of a block whose tokens all take in the first one's value, which is unlike the others."""
    tokens, width = 48, 64
    x = [draw(4, tokens, width, seed=seed) for seed in range(4)]
    for batch in x:
        batch[:, 0] = 3 * torch.linspace(-1, 1, width)
    block = make_block("block", FirstToken(width), [Call((batch,), {}) for batch in x])
    one, groups = block.layers["value.weight"], find_groups(block, ["value.weight"])
    errors = []
    for importance in (None, token_importance(block, ["value.weight"])):
        (seen,) = collect(block, groups, None, importance)["value.weight"]
        q = GPTQ().round(Layer("w", one.weight, one.scheme, one.dtype, seen))
        errors.append(block.error({"value.weight": q.dequantize()}))
    assert errors[1] < 0.5 * errors[0]


class FirstToken(torch.nn.Module):
    """Each token adds the value of the first one, and a little of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = torch.nn.Linear(width, width, bias=False)
        self.value.weight.data = draw(width, width, seed=9)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        values = self.value(hidden)
        return hidden + values[:, :1] + 0.1 * values
