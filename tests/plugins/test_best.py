"""`best`: its loss against the definition, and the whole on a small block."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

import numpy as np
import pytest
import torch
from tiny_blocks import tiny_blocks

from woqfx import QTensor, Scheme, quantize_nearest
from woqfx.testing import AlgorithmSuite
from woqfx_best.best import Best, BestOptions
from woqfx_best.output import token_error


class TestBestWithoutData(AlgorithmSuite):
    algorithm = Best


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
