"""Learning a block: what stays, what moves, and that its error is that of what will be stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from tiny_blocks import tiny_blocks

from woqfx import Block, Learning, QTensor, Rates, Scheme, quantize_nearest
from woqfx.learning.optimizer import Adam, Momentum


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


def take(learning: Learning, calls: Sequence[int], count: int, batch: int) -> list[int]:
    return list(learning.steps(calls, count, batch))


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
    take(learning, range(4), 12, 2)
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
    take(learning, range(4), 3, 1)
    stored = {n: x.dequantize() if isinstance(x, QTensor) else x for n, x in learning.results().items()}
    own = [float(squares(block)(number, stored)) for number in range(4)]
    assert learning.error(range(4)) == pytest.approx(sum(own) / 4, rel=1e-6)


def test_only_the_calls_that_are_given_are_looked_at(block):
    seen = set()

    def loss(number: int, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
        seen.add(number)
        return squares(block)(number, parameters)

    take(Learning(block, to_nearest(block), loss, Rates(0.02, 0.01, 0.01)), [1, 3], 5, 1)
    assert seen == {1, 3}


def test_steps_are_counted(block):
    learning = Learning(block, to_nearest(block), squares(block), Rates(0.0, 0.01, 0.0))
    assert take(learning, [0], 3, 1) == [1, 2, 3]


@pytest.mark.parametrize("optimizer", [Adam, Momentum])
@pytest.mark.parametrize("codes", [0.0, 0.02], ids=["scales", "codes"])
def test_a_run_that_goes_on_ends_as_a_straight_one(block, optimizer, codes):
    def begin() -> Learning:
        rates = Rates(codes, 0.01, 0.01)
        return Learning(block, to_nearest(block), squares(block), rates, seed=3, optimizer=optimizer)

    straight, stopped, resumed = begin(), begin(), begin()
    take(straight, range(4), 7, 2)
    for done in stopped.steps(range(4), 7, 2):
        if done == 3:
            break
    resumed.restore({name: tensor.clone() for name, tensor in stopped.state().items()})
    assert list(resumed.steps(range(4), 7, 2, done=3)) == [4, 5, 6, 7]
    assert resumed.error(range(4)) == straight.error(range(4))
    for name, one in straight.results().items():
        other = resumed.results()[name]
        parts = {"": one} if isinstance(one, torch.Tensor) else one.tensors()
        others = {"": other} if isinstance(other, torch.Tensor) else other.tensors()
        assert all(torch.equal(part, others[key]) for key, part in parts.items()), name


def test_scales_that_are_quantized_themselves_stay_if_codes_do(block):
    quantized = to_nearest(block, double_quant=True)
    learning = Learning(block, quantized, squares(block), Rates(0.0, 0.01, 0.01))
    assert not learning.results().keys() & quantized.keys()
