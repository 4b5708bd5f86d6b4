"""TEQ: gradients against finite differences and the rule they follow; training that never ends worse than it began."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_blocks import make_block, tiny_blocks
from torch import Tensor, nn

from woqfx import Block, Call, Fold, Layer, Scheme, WoqfxError, data_fit, quantize_nearest, registry
from woqfx.blocks.feeds import find_feeds
from woqfx.testing import AlgorithmSuite, DataAlgorithmSuite
from woqfx_teq.rounding import find_clipping, straight_through
from woqfx_teq.teq import TEQ, TEQOptions
from woqfx_teq.training import OutputError, Trainer

SCHEMES = {
    "int4_fullrange": Scheme("int4_fullrange", group_size=16),
    "int4_clip-asym": Scheme("int4_clip", group_size=16, symmetric=False),
    "nf4": Scheme("nf4", group_size=24),
    "fp4_e2m1": Scheme("fp4_e2m1", group_size=-1),
}


class TestTEQ(AlgorithmSuite):
    algorithm = TEQ
    variants = (TEQOptions(), TEQOptions(clip=False, start="identity"))


class TestTEQOnData(DataAlgorithmSuite):
    algorithm = TEQ
    variants = (TEQOptions(steps=4), TEQOptions(steps=4, clip=False, start="identity", batch=3))
    nearest_multiple = 1.05  # the suite measures on one short call, the training on the others


def layer_of(scheme: Scheme) -> Layer:
    weight = torch.randn(12, 48, generator=torch.Generator().manual_seed(0))
    return Layer("w", weight, scheme, registry().dtype(scheme.dtype))


def moments() -> Tensor:
    x = torch.randn(200, 48, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, 48)
    return x.T @ x / len(x)


@pytest.mark.parametrize("label", SCHEMES)
def test_it_rounds_to_what_will_be_stored(label: str) -> None:
    """Plainly, or clipped by the data: the very numbers of `quantize_nearest`, but for the division by the scale."""
    layer = layer_of(SCHEMES[label])
    fit = data_fit(moments(), layer.dtype, layer.scheme)
    for seen, chosen in ((None, None), (moments(), fit)):
        clipping = find_clipping(layer.weight, layer, seen)
        stored = quantize_nearest(layer.weight, layer.dtype, layer.scheme, name="w", fit=chosen).dequantize()
        rounded = straight_through(layer.weight, layer.dtype, layer.scheme, clipping)
        torch.testing.assert_close(rounded, stored, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("label", SCHEMES)
def test_the_gradient_is_that_of_the_surrogate(label: str) -> None:
    """w' = w + (v' - v) s with v' - v held and s in proportion to the range, differentiated by central differences."""
    layer = layer_of(replace(SCHEMES[label], scale_dtype="fp32"))
    clipping = find_clipping(layer.weight, layer, None)
    weight = layer.weight.clone().requires_grad_()
    rounded = straight_through(weight, layer.dtype, layer.scheme, clipping)
    direction = torch.randn(rounded.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((rounded * direction).sum(), weight)

    width = layer.scheme.group_width(48)
    held = (rounded.detach() - layer.weight).double().split(width, 1)

    def extent(groups: Tensor) -> Tensor:
        if layer.scheme.symmetric:
            return groups.abs().amax(1, keepdim=True)
        return groups.amax(1, keepdim=True).clamp(min=0) - groups.amin(1, keepdim=True).clamp(max=0)

    def surrogate(changed: Tensor) -> float:
        groups = zip(changed.split(width, 1), held, layer.weight.double().split(width, 1), strict=True)
        parts = [now + off * extent(now) / extent(was) for now, off, was in groups]
        return float((torch.cat(parts, 1) * direction).sum())

    step = 1e-6
    for column in (0, 5, 17, 40):
        shift = torch.zeros(12, 48, dtype=torch.float64)
        shift[:, column] = step
        numeric = (surrogate(layer.weight + shift) - surrogate(layer.weight - shift)) / (2 * step)
        assert float(gradient[:, column].sum()) == pytest.approx(numeric, rel=1e-3, abs=1e-4)


def outlier_block(scheme: Scheme, *, batches: int = 4, workers: int = 1) -> Block:
    """A norm and a linear; a few input channels are far larger than the rest, which is what scales are for."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 32))
    module[0].weight.data *= torch.logspace(-1, 1, 48)[torch.randperm(48)]
    module[1].weight.data.normal_()
    calls = [Call((torch.randn(2, 40, 48),), {}) for _ in range(batches)]
    block = make_block("b", module, calls, scheme, workers=workers)
    return replace(block, feeds=find_feeds(block))


@pytest.mark.parametrize("start", ["identity", "awq"])
@pytest.mark.parametrize("label", SCHEMES)
def test_training_lowers_the_error_of_the_block(label: str, start: str) -> None:
    block = outlier_block(SCHEMES[label])
    facts: dict[str, float] = {}
    teq = TEQ(TEQOptions(steps=60, learning_rate=0.05, start=start, clip=False))
    folds = list(teq.transform(replace(block, note=facts.update)))
    assert [fold.feed for fold in folds] == list(block.feeds)
    parameters = {**block.parameters, **folds[0].apply(block.parameters)}
    assert block.error(parameters) < 1e-9, "the float function is kept"
    assert facts["teq_error"] < 0.85 * facts["teq_error_before"]
    assert facts["teq_error_before"] == pytest.approx(rounded_error(block, teq, {}), rel=1e-2)
    assert facts["teq_error"] == pytest.approx(rounded_error(block, teq, parameters), rel=1e-2)


def test_with_clipping_the_objective_is_what_clipped_weights_will_give() -> None:
    block = outlier_block(SCHEMES["int4_fullrange"])
    facts: dict[str, float] = {}
    teq = TEQ(TEQOptions(steps=60))
    (only,) = teq.transform(replace(block, note=facts.update))
    assert facts["teq_error"] < facts["teq_error_before"]
    parameters = {**block.parameters, **only.apply(block.parameters)}
    assert facts["teq_error_before"] == pytest.approx(rounded_error(block, teq, {}), rel=1e-2)
    assert facts["teq_error"] == pytest.approx(rounded_error(block, teq, parameters), rel=1e-2)


def rounded_error(block: Block, teq: TEQ, parameters: dict[str, Tensor]) -> float:
    """The objective, anew: each weight rounded as the engine will ask for it."""
    inputs = block.statistics(list(block.layers), parameters)
    rounded = {
        name: teq.round(replace(layer, weight=parameters.get(name, layer.weight), inputs=inputs[name][0])).dequantize()
        for name, layer in block.layers.items()
    }
    return block.error({**parameters, **rounded})


def test_a_point_that_is_worse_is_not_taken() -> None:
    """A rate at which training can only do harm leaves the scales at 1."""
    block = outlier_block(SCHEMES["int4_fullrange"])
    trainer = Trainer(block, OutputError(), clip=False)
    start = [torch.zeros(feed.size) for feed in block.feeds]
    trained = trainer.train(start, steps=4, learning_rate=50.0, warmup=0.1, batch=1)
    assert trained.error == trained.error_before
    assert all(bool((scale == 1).all()) for scale in trained.scales)
    assert not list(TEQ(TEQOptions(steps=4, learning_rate=50.0, start="identity", clip=False)).transform(block))


def test_the_same_scales_on_one_and_two_workers() -> None:
    teq = TEQ(TEQOptions(steps=6, batch=3, clip=False))
    blocks = (outlier_block(SCHEMES["nf4"], workers=workers) for workers in (1, 2))
    results = [[fold.scale for fold in teq.transform(block)] for block in blocks]
    assert results[0] and all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "t5", "gemma2"])
def test_families(family: str) -> None:
    """Whole blocks: several feeds at once, experts, transposed weights, 1 + w."""
    for block in tiny_blocks(family, SCHEMES["nf4"], batches=2).values():
        facts: dict[str, float] = {}
        ready = replace(block, feeds=find_feeds(block), note=facts.update)
        parameters = dict(block.parameters)
        for fold in TEQ(TEQOptions(steps=3, batch=1)).transform(ready):
            assert isinstance(fold, Fold)
            parameters |= fold.apply(parameters)
        assert block.error(parameters) < 1e-9
        assert facts["teq_error"] <= facts["teq_error_before"]


def test_an_unknown_choice_is_an_error() -> None:
    with pytest.raises(WoqfxError, match="option start of algorithm teq is awq or identity, not 'rtn'"):
        TEQOptions(start="rtn")
    with pytest.raises(WoqfxError, match="option objective of algorithm teq is block or lm, not 'loss'"):
        TEQOptions(objective="loss")
