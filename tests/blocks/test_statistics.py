from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_blocks import tiny_blocks

from woqfx.algorithm import Fold
from woqfx.blocks.feeds import find_feeds
from woqfx.blocks.folding import fold
from woqfx.blocks.statistics import collect, find_groups


def block_of(family, batches=3):
    return next(iter(tiny_blocks(family, batches=batches).values()))


def inputs_of(block, name, expert=0):
    """The rows that a weight is multiplied by, in float64, by observing alone."""
    rows = []

    def see(_, number, x):
        if number == expert:
            rows.append(x.reshape(-1, x.shape[-1]).double().numpy())

    with torch.no_grad():
        for call in block.calls:
            block.observe(call, [name], see)
    return np.concatenate(rows) if rows else np.zeros((0, block.parameters[name].shape[-1]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_sums_are_those_of_the_inputs(family):
    block = block_of(family)
    for name, found in block.statistics(list(block.layers)).items():
        for expert, one in enumerate(found):
            x = inputs_of(block, name, expert)
            assert one.tokens == len(x)
            count = max(1, len(x))
            np.testing.assert_allclose(one.moments.numpy(), x.T @ x / count, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(one.mean.numpy(), x.sum(0) / count, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(one.mean_abs.numpy(), np.abs(x).sum(0) / count, rtol=1e-4, atol=1e-5)
            assert torch.equal(one.moments, one.moments.T)


def test_wide_inputs_are_summed_in_squares(monkeypatch):
    block = block_of("llama")
    whole = block.statistics(["mlp.down_proj.weight"])["mlp.down_proj.weight"][0]
    monkeypatch.setattr("woqfx.blocks.statistics._SQUARE", 40)
    parts = block_of("llama").statistics(["mlp.down_proj.weight"])["mlp.down_proj.weight"][0]
    torch.testing.assert_close(parts.moments, whole.moments, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_the_same_bits_by_any_number_of_threads(family):
    block = block_of(family, batches=5)
    groups = find_groups(block, list(block.layers))
    one, many = (collect(replace(block, workers=workers), groups) for workers in (1, 4))
    for name, found in one.items():
        for left, right in zip(found, many[name], strict=True):
            assert left.tokens == right.tokens
            assert torch.equal(left.moments, right.moments)
            assert torch.equal(left.mean, right.mean)


def test_weights_that_share_inputs_are_found_in_the_order_of_their_use():
    block = block_of("llama")
    names = [[name.split(".")[1] for name in group.names] for group in find_groups(block, sorted(block.layers))]
    assert [sorted(group) for group in names] == [
        ["k_proj", "q_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    experts = find_groups(block_of("mixtral"), ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    assert [(group.names, group.uses) for group in experts] == [
        (("mlp.experts.gate_up_proj",), 0),
        (("mlp.experts.down_proj",), 0),
    ]


def test_other_weights_can_be_replaced():
    block = block_of("llama")
    (group,) = find_groups(block, ["mlp.down_proj.weight"])
    changed = {"mlp.up_proj.weight": 2 * block.parameters["mlp.up_proj.weight"]}
    plain, doubled = (collect(block, [group], weights)[group.names[0]][0] for weights in ({}, changed))
    torch.testing.assert_close(doubled.moments, 4 * plain.moments)


@pytest.mark.parametrize("family", ["llama", "opt", "mixtral"])
def test_a_fold_only_rescales_what_is_known(family):
    block = block_of(family)
    names = list(block.layers)
    block.statistics(names)
    parameters = dict(block.parameters)
    for feed in find_feeds(block):
        scale = torch.exp(0.3 * torch.randn(feed.size, generator=torch.Generator().manual_seed(1)))
        made = Fold(feed, scale)
        parameters |= fold(made.feed, scale, parameters)
        picked = {
            name: torch.where(index < 0, torch.ones(()), scale[index.clamp(min=0)])
            for name, index in feed.consumers.items()
        }
        block.gathered.rescale(picked)
    rescaled = block.statistics(names)
    fresh = collect(replace(block, parameters=parameters), find_groups(block, names))
    for name, found in rescaled.items():
        for one, other in zip(found, fresh[name], strict=True):
            torch.testing.assert_close(one.moments, other.moments, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(one.mean_abs, other.mean_abs, rtol=1e-3, atol=1e-5)


def test_an_error_in_one_batch_does_not_leave_the_others_waiting():
    block = replace(block_of("llama", batches=4), workers=2)
    calls = list(block.calls)
    calls[1] = replace(calls[1], args=(), kwargs={})
    with pytest.raises(TypeError):
        replace(block, calls=calls).statistics(list(block.layers))
