"""A weight on its grid, made differentiable: against autograd, and the weight that it starts as."""

from __future__ import annotations

import pytest
import torch

from woqfx import Layer, QTensor, Scheme, Statistics, quantize_nearest, registry
from woqfx.learning.latent import Latent
from woqfx.learning.scaled import Scaled
from woqfx_gptq.gptq import GPTQ, GPTQOptions

GRIDS = [("int4_clip", True), ("int4_clip", False), ("int4_fullrange", True), ("nf4", True), ("fp4_e2m1", True)]
IDS = ["int4_clip", "int4_clip-asym", "int4_fullrange", "nf4", "fp4_e2m1"]


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
    assert torch.equal(latent.result().dequantize(), q.dequantize())


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
    found = latent.backward(slope)
    gain = latent.gain.clone().requires_grad_()
    spread = q.params().scale.repeat_interleave(16, 1)[:, :40]
    (latent.rounded() * spread * gain.repeat_interleave(16, 1)[:, :40] * slope).sum().backward()
    assert torch.allclose(found["gain"], gain.grad, rtol=1e-4, atol=1e-5)
    assert torch.allclose(found["steps"], slope * spread)


@pytest.mark.parametrize(("name", "symmetric"), GRIDS, ids=IDS)
@pytest.mark.parametrize("ordered", [False, True], ids=["in-order", "ordered"])
def test_scales_alone(name, symmetric, ordered):
    """Codes stay whatever the gains; the gradient is that of a latent weight."""
    weight, q = rounded(name, symmetric, ordered=ordered)
    scaled, latent, slope = Scaled(q), Latent(weight, q), draw(6, 40, seed=3)
    assert torch.equal(scaled.weight(), q.dequantize())
    assert torch.equal(scaled.backward(slope)["gain"], latent.backward(slope)["gain"])
    scaled.gain.mul_(1.5)
    assert torch.equal(scaled.result().unpacked(), q.unpacked())
    assert torch.allclose(scaled.result().dequantize(), 1.5 * q.dequantize(), rtol=1e-3)
