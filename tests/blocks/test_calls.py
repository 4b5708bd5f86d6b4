from __future__ import annotations

from dataclasses import replace

import torch
from tiny_blocks import tiny_blocks

from woqfx.blocks.activations import Store
from woqfx.blocks.block import Call
from woqfx.blocks.calls import Calls, Distinct, Targets, in_order


def test_what_is_alike_is_kept_once():
    store = Store(None)
    keep = Distinct(store.shelf(0))
    mask = torch.ones(3, dtype=torch.bool)
    assert [keep(mask), keep(mask.clone()), keep(mask.float()), keep(mask.view(3, 1)), keep(torch.ones(3))] == [
        *(0, 0, 1, 2),
        1,
    ]


def test_calls_come_back_as_they_were():
    store = Store(None)
    owned = torch.ones(4)
    calls = Calls(store.shelf(0), {id(owned): owned})
    made = [Call((owned, torch.full((2,), n)), {"mask": torch.ones(1), "flag": True}) for n in range(3)]
    for call in made:
        calls.add(call)
    assert len(calls.shelf) == 4  # three hidden states and one mask
    for found, call in zip(calls, made, strict=True):
        assert found.args[0] is owned
        assert torch.equal(found.args[1], call.args[1])
        assert found.kwargs["flag"] is True
    assert len(calls[1:]) == 2


def test_targets_are_computed_when_they_are_asked_for():
    block = next(iter(tiny_blocks("llama", batches=4).values()))
    expected, asked = list(block.targets), []

    class Counting(type(block)):
        def run(self, call, weights=None):
            asked.append(call)
            return super().run(call, weights)

    object.__setattr__(block, "__class__", Counting)
    targets = Targets(block, block.calls, Store(None))
    assert len(targets) == 4 and not asked
    assert torch.equal(targets[-1], expected[-1])
    assert torch.equal(targets[:3][2], expected[2]) and len(targets[:3]) == 3
    assert torch.equal(targets[2], expected[2])
    assert len(asked) == 2
    found = replace(block, workers=3).map(targets.__getitem__, range(4))
    assert all(map(torch.equal, found, expected))
    assert len(asked) == 4


def test_results_come_in_order():
    block = replace(next(iter(tiny_blocks("llama", batches=5).values())), workers=3)
    for (call, output), expected, original in zip(in_order(block, block.run), block.targets, block.calls, strict=True):
        assert call is original
        assert torch.equal(output, expected)
