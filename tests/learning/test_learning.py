"""Learning a block: what stays, what moves, and that its error is that of what will be stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from tiny_blocks import tiny_blocks

from woqfx import Block, Learning, QTensor, Rates, Scheme, quantize_nearest


@pytest.fixture(scope="module")
def block() -> Block:
    return next(iter(tiny_blocks("llama", Scheme("int4_fullrange", group_size=16), batches=4).values()))


def to_nearest(block: Block, **changes: object) -> dict[str, QTensor]:
    return {
        name: quantize_nearest(one.weight, one.dtype, replace(one.scheme, **changes), name=name)
        for name, one in block.layers.items()
    }


def squares(block: Block):
    """The mean square of what the output is off."""

    def loss(number: int, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return (block.run(block.calls[number], parameters) - block.targets[number]).square().mean()

    return loss


@pytest.mark.parametrize(
    ("rates", "moves"),
    [
        (Rates(0.02, 0.0, 0.0), {"codes"}),
        (Rates(0.0, 0.01, 0.0), {"scales"}),
        (Rates(0.0, 0.0, 0.01), {"vectors"}),
    ],
    ids=["codes", "scales", "vectors"],
)
def test_what_has_rate_0_stays(block, rates, moves):
    quantized = to_nearest(block)
    learning = Learning(block, quantized, squares(block), rates)
    before = learning.error(range(4))
    learning.run(range(4), steps=12, batch=2)
    assert learning.error(range(4)) < before
    results = {**quantized, **learning.results()}
    assert moves == {
        kind
        for kind, changed in {
            "codes": any(not torch.equal(results[n].codes, q.codes) for n, q in quantized.items()),
            "scales": any(not torch.equal(results[n].scales, q.scales) for n, q in quantized.items()),
            "vectors": any(n not in quantized and not torch.equal(t, block.parameters[n]) for n, t in results.items()),
        }.items()
        if changed
    }


@pytest.mark.parametrize("changes", [{}, {"scale_dtype": "bf16"}, {"double_quant": True}], ids=["fp16", "bf16", "dq"])
def test_the_error_is_that_of_what_is_stored(block, changes):
    """Scales are rounded to their storage type, or compressed, before the error is measured."""
    learning = Learning(block, to_nearest(block, **changes), squares(block), Rates(0.02, 0.01, 0.01))
    learning.run(range(4), steps=3, batch=1)
    stored = {n: x.dequantize() if isinstance(x, QTensor) else x for n, x in learning.results().items()}
    own = [float(squares(block)(number, stored)) for number in range(4)]
    assert learning.error(range(4)) == pytest.approx(sum(own) / 4, rel=1e-6)


def test_only_the_calls_that_are_given_are_looked_at(block):
    seen = set()

    def loss(number: int, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
        seen.add(number)
        return squares(block)(number, parameters)

    Learning(block, to_nearest(block), loss, Rates(0.02, 0.01, 0.01)).run([1, 3], steps=5, batch=1)
    assert seen == {1, 3}


def test_each_step_is_reported(block):
    told: list[int] = []
    learning = Learning(block, to_nearest(block), squares(block), Rates(0.0, 0.01, 0.0))
    learning.run([0], steps=3, batch=1, report=told.append)
    assert told == [1, 2, 3]
