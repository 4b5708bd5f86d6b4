"""AWQ against the paper's formulas, computed anew in numpy and on the data themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_blocks import make_block, tiny_blocks
from tiny_models import FAMILIES
from torch import Tensor, nn

from woqfx import Block, Call, Feed, Layer, Scheme, Statistics, quantize_nearest, registry
from woqfx.blocks.feeds import find_feeds
from woqfx.blocks.folding import fold
from woqfx.testing import AlgorithmSuite
from woqfx_awq.awq import AWQ, AWQOptions
from woqfx_awq.fed import FedWeight
from woqfx_awq.search import Search

SCHEMES = {
    "int4_fullrange": Scheme("int4_fullrange", group_size=16),
    "int4_clip-asym": Scheme("int4_clip", group_size=16, symmetric=False),
    "nf4": Scheme("nf4", group_size=24),
    "fp4_e2m1": Scheme("fp4_e2m1", group_size=-1),
}


class TestAWQ(AlgorithmSuite):
    algorithm = AWQ
    variants = (AWQOptions(), AWQOptions(clip=False, duo_scaling=False))


def plain(mapped: object, items: object) -> list[float]:
    return [mapped(item) for item in items]  # type: ignore[operator, attr-defined]


def inputs_of(x: Tensor) -> Statistics:
    return Statistics(len(x), x.T @ x / len(x), x.mean(0), x.abs().mean(0))


def example(scheme: Scheme, *, seed: int = 0, k: int = 48) -> tuple[FedWeight, Tensor]:
    """A weight [40, K] whose inputs differ in size by orders of magnitude, and those inputs."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(400, k, generator=draw) @ torch.randn(k, k, generator=draw) * torch.logspace(-1, 1, k)
    weight = torch.randn(40, k, generator=draw)
    return FedWeight(weight, torch.arange(k), registry().dtype(scheme.dtype), scheme, inputs_of(x)), x


def numpy_error(one: FedWeight, x: Tensor, scale: Tensor) -> float:
    """|x W'^T - x W^T|^2 / |x W^T|^2 with W' = Q(W s) / s, computed on the data."""
    q = quantize_nearest(one.weight * scale, one.dtype, one.scheme, name="w").dequantize().double().numpy()
    weight, rows = one.weight.double().numpy(), x.double().numpy()
    off = rows @ (q / scale.double().numpy() - weight).T
    return float(np.square(off).sum() / np.square(rows @ weight.T).sum())


def paper_scale(one: FedWeight, x: Tensor, alpha: float, *, duo: bool) -> Tensor:
    """AutoAWQ's formula: x^a / w^(1-a), with w the mean of |w| / group maximum over rows; up to a factor."""
    magnitude = x.abs().mean(0).double()
    w = one.weight.double().abs()
    width = one.scheme.group_width(w.shape[1])
    parts = [part / part.amax(1, keepdim=True) for part in w.split(width, dim=1)]
    relative = torch.cat(parts, 1).mean(0)
    scale = magnitude**alpha / (relative ** (1 - alpha) if duo else 1)
    return (scale / scale.log().mean().exp()).float()


@pytest.mark.parametrize("duo", [True, False], ids=["duo", "inputs_only"])
@pytest.mark.parametrize("label", SCHEMES)
def test_the_scales_and_the_error_are_the_papers(label: str, duo: bool) -> None:
    one, x = example(SCHEMES[label])
    found = Search(grid=20, duo_scaling=duo, clip=False).best([one], 48, plain)
    assert found.exponent is not None
    torch.testing.assert_close(found.scale, paper_scale(one, x, found.exponent, duo=duo), rtol=1e-4, atol=1e-6)
    assert found.error == pytest.approx(numpy_error(one, x, found.scale), rel=1e-3)
    assert found.error_before == pytest.approx(numpy_error(one, x, torch.ones(48)), rel=1e-3)
    whole_grid = [numpy_error(one, x, paper_scale(one, x, i / 20, duo=duo)) for i in range(21)]
    assert min(whole_grid) <= found.error * 1.001 <= 1.05 * min(whole_grid), "from coarse to fine misses little"
    assert found.error < found.error_before


def test_one_is_in_the_grid() -> None:
    scheme = SCHEMES["int4_fullrange"]
    one, _ = example(scheme)
    on_grid = quantize_nearest(one.weight, one.dtype, scheme, name="w").dequantize()
    found = Search(20, duo_scaling=True, clip=True).best([replace(one, weight=on_grid)], 48, plain)
    assert found.exponent is None and found.error == found.error_before == 0
    assert torch.equal(found.scale, torch.ones(48))


def test_weights_and_inputs_of_zero_give_finite_scales() -> None:
    scheme = SCHEMES["int4_fullrange"]
    one, x = example(scheme)
    x[:, 3:20] = 0
    weight = one.weight.clone()
    weight[:, 10:30] = 0
    weight[5] = 0
    found = Search(20, duo_scaling=True, clip=True).best([replace(one, weight=weight, inputs=inputs_of(x))], 48, plain)
    assert bool(torch.isfinite(found.scale).all()) and bool((found.scale > 0).all())
    assert found.error <= found.error_before


def fed(block: Block) -> Block:
    return replace(block, feeds=find_feeds(block))


def transformed(block: Block) -> tuple[dict[str, Tensor], list[Feed]]:
    parameters, used = dict(block.parameters), []
    for chosen in AWQ().transform(block):
        parameters |= fold(chosen.feed, chosen.scale, parameters)
        used.append(chosen.feed)
    return parameters, used


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_its_function_and_loses_less(family: str) -> None:
    """By the measure that AWQ promises: the error of each weight's output, in float inputs."""
    for block in map(fed, tiny_blocks(family, SCHEMES["int4_fullrange"], batches=2).values()):
        parameters, used = transformed(block)
        assert used
        assert block.error(parameters) < 1e-9
        before, after = 0.0, 0.0
        for name, own in block.statistics(list(block.layers)).items():
            for expert, (old, new) in enumerate(zip(own, block.statistics([name], parameters)[name], strict=True)):
                old_weight, new_weight = (
                    w[name].reshape(-1, *w[name].shape[-2:])[expert] for w in (block.parameters, parameters)
                )
                if old.tokens:
                    before += nearest_error(old_weight, block.layers[name], old)
                    after += nearest_error(new_weight, block.layers[name], new)
        assert after < before


def nearest_error(weight: Tensor, layer: Layer, inputs: Statistics) -> float:
    off = quantize_nearest(weight, layer.dtype, layer.scheme, name="w").dequantize() - weight
    whole = ((weight @ inputs.moments) * weight).sum()
    return float(((off @ inputs.moments) * off).sum() / whole)


@pytest.mark.parametrize("label", SCHEMES)
def test_rounding_clips_by_the_error_of_the_output(label: str) -> None:
    one, x = example(SCHEMES[label])
    layer = Layer("w", one.weight, one.scheme, one.dtype, one.inputs)
    clipped, nearest = AWQ().round(layer).dequantize(), quantize_nearest(one.weight, one.dtype, one.scheme, name="w")
    assert torch.equal(AWQ(AWQOptions(clip=False)).round(layer).dequantize(), nearest.dequantize())
    errors = [float((x @ (q - one.weight).T).square().sum()) for q in (clipped, nearest.dequantize())]
    assert errors[0] < 0.95 * errors[1]


def test_it_can_clip_and_leave_channels_as_they_are() -> None:
    assert not list(AWQ(AWQOptions(scale=False)).transform(fed(tiny_blocks("llama", SCHEMES["nf4"])["model.layers.0"])))


def test_the_same_scales_on_one_and_two_workers() -> None:
    block = fed(tiny_blocks("mixtral", SCHEMES["nf4"], batches=3)["model.layers.0"])
    one, two = (list(AWQ().transform(replace(block, workers=workers))) for workers in (1, 2))
    assert len(one) == len(two) > 0
    assert all(torch.equal(a.scale, b.scale) and a.facts == b.facts for a, b in zip(one, two, strict=True))


def test_the_grid_of_each_layer_is_its_own() -> None:
    """A feed whose weights have different dtypes is judged on those."""
    module = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 40))
    torch.manual_seed(1)
    module[1].weight.data.normal_()
    x = torch.randn(2, 60, 48) * torch.logspace(-1, 1, 48)
    chosen = {}
    for dtype in ("int8", "nf4"):
        block = fed(make_block("b", module, [Call((x,), {})], Scheme(dtype, group_size=16)))
        (only,) = AWQ().transform(block)
        chosen[dtype] = only.facts["error_before"]
    assert chosen["int8"] < chosen["nf4"] / 50


def test_what_is_kept_is_rescaled_but_not_judged() -> None:
    block = fed(tiny_blocks("mixtral", SCHEMES["nf4"])["model.layers.0"])
    assert "mlp.gate.weight" not in block.layers
    gate = next(chosen for chosen in AWQ().transform(block) if chosen.feed.name == "post_attention_layernorm")
    assert "mlp.gate.weight" in gate.feed.consumers
