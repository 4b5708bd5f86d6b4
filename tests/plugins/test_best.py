"""`best`: its parts against autograd, PyTorch's Adam and the definitions, and the whole on a small block."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

import numpy as np
import pytest
import torch
from tiny_blocks import tiny_blocks

from woqfx import Layer, QTensor, Scheme, Statistics, quantize_nearest, registry
from woqfx.testing import AlgorithmSuite
from woqfx_best.adam import Adam
from woqfx_best.best import Best, BestOptions
from woqfx_best.latent import Latent
from woqfx_best.learning import token_error
from woqfx_gptq.gptq import GPTQ, GPTQOptions

GRIDS = [("int4_clip", True), ("int4_clip", False), ("int4_fullrange", True), ("nf4", True), ("fp4_e2m1", True)]
IDS = ["int4_clip", "int4_clip-asym", "int4_fullrange", "nf4", "fp4_e2m1"]


class TestBestWithoutData(AlgorithmSuite):
    algorithm = Best


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(name: str, symmetric: bool, *, ordered: bool = False) -> tuple[torch.Tensor, QTensor]:
    """A weight, and what other than rounding to the nearest made of it."""
    weight, x = draw(6, 40), draw(100, 40, seed=1) @ (torch.eye(40) + 0.3 * draw(40, 40, seed=2))
    seen = Statistics(100, x.T @ x / 100, x.mean(0), x.abs().mean(0))
    layer = Layer("w", weight, Scheme(name, group_size=16, symmetric=symmetric), registry().dtype(name), seen)
    return weight, GPTQ(GPTQOptions(desc_act=ordered)).round(layer)


@pytest.mark.parametrize(("name", "symmetric"), GRIDS, ids=IDS)
@pytest.mark.parametrize("ordered", [False, True], ids=["in-order", "ordered"])
def test_a_latent_weight_starts_as_the_quantized_one(name, symmetric, ordered):
    weight, q = rounded(name, symmetric, ordered=ordered)
    latent = Latent(weight, q)
    assert torch.equal(latent.codes(), q.unpacked())
    assert torch.equal(latent.weight(), q.dequantize())
    assert torch.equal(latent.qtensor().dequantize(), q.dequantize())


def test_it_starts_at_the_weight_where_that_rounds_to_the_code():
    weight, dtype, scheme = draw(4, 32), registry().dtype("int4_fullrange"), Scheme("int4_fullrange")
    q = quantize_nearest(weight, dtype, scheme, name="w")
    latent = Latent(weight, q)
    wanted = weight / q.params().scale
    inside = (wanted - wanted.round()).abs() < 0.44
    assert torch.equal(latent.steps[inside], wanted[inside])
    assert bool(((latent.steps - wanted).abs() <= 0.5).all())


@pytest.mark.parametrize(("name", "symmetric"), GRIDS, ids=IDS)
def test_gradients(name, symmetric):
    """Of the scales' gains as autograd finds it; of the numbers that are rounded, as if they were not rounded."""
    weight, q = rounded(name, symmetric)
    latent, slope = Latent(weight, q), draw(6, 40, seed=3)
    of_steps, of_gain = latent.backward(slope)
    gain = latent.gain.clone().requires_grad_()
    spread = q.params().scale.repeat_interleave(16, 1)[:, :40]
    (latent.rounded() * spread * gain.repeat_interleave(16, 1)[:, :40] * slope).sum().backward()
    assert torch.allclose(of_gain, gain.grad, rtol=1e-4, atol=1e-5)
    assert torch.allclose(of_steps, slope * spread)


def test_adam_is_pytorchs():
    ours, theirs = draw(5), draw(5).requires_grad_()
    adam = Adam(ours, 0.1, (0.9, 0.95))
    optimizer = torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.95), eps=1e-30)
    for seed in range(1, 6):
        gradient = draw(5, seed=seed)
        adam.step(gradient, 1.0)
        theirs.grad = gradient
        optimizer.step()
    assert torch.allclose(ours, theirs.detach(), rtol=1e-5)


def test_each_token_counts_by_its_own_size():
    output, target = draw(2, 3, 4), draw(2, 3, 4, seed=1) * torch.tensor([1.0, 100.0, 0.01]).view(1, 3, 1)
    off = ((output - target).numpy() ** 2).sum(-1) / (target.numpy() ** 2).sum(-1)
    assert float(token_error(output, target)) == pytest.approx(float(np.mean(off)), rel=1e-5)


@pytest.fixture(scope="module")
def block():
    return next(iter(tiny_blocks("llama", Scheme("int4_fullrange", group_size=16), batches=4).values()))


def to_nearest(block) -> MappingProxyType:
    layers = block.layers.items()
    return MappingProxyType({n: quantize_nearest(x.weight, x.dtype, x.scheme, name=n) for n, x in layers})


def weights(changed) -> dict[str, torch.Tensor]:
    return {name: one.dequantize() if isinstance(one, QTensor) else one for name, one in changed.items()}


def test_learning_brings_the_output_nearer(block):
    quantized = to_nearest(block)
    options = BestOptions(iterations=40, rate=0.05)
    better = Best(options).refine(block, quantized)
    before, after = block.error(weights(quantized)), block.error(weights({**quantized, **better}))
    assert after < 0.8 * before
    for name, q in quantized.items():
        made = better[name]
        assert (made.scheme, made.shape, made.dtype) == (q.scheme, q.shape, q.dtype)


def test_what_is_no_better_is_not_kept(block):
    """At a rate that is far too high, nothing changes."""
    quantized = to_nearest(block)
    assert Best(BestOptions(iterations=2, rate=50.0)).refine(block, quantized) == {}
    assert Best(BestOptions(iterations=0)).refine(block, quantized) == {}


def test_the_number_of_threads_changes_nothing(block):
    results = []
    for workers in (1, 2):
        shared = dataclasses.replace(block, workers=workers)
        results.append(Best(BestOptions(iterations=3)).refine(shared, to_nearest(block)))
    assert results[0].keys() == results[1].keys()
    for name, one in weights(results[0]).items():
        assert torch.equal(one, weights(results[1])[name])
