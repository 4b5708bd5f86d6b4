"""How much the output depends on each token: against derivatives by hand."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tiny_blocks import make_block, tiny_blocks
from torch import Tensor, nn

from woqfx import Block, Call
from woqfx.blocks.importance import token_importance
from woqfx.blocks.statistics import collect, find_groups

TOKENS, WIDTH = 6, 32


class Looking(nn.Module):
    """Every token adds to itself what it sees of all tokens: rows of `mix` say how much of each."""

    def __init__(self, mix: Tensor) -> None:
        super().__init__()
        self.value, self.unused = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.register_buffer("mix", mix)

    def forward(self, hidden: Tensor) -> Tensor:
        self.unused(hidden)
        return hidden + torch.einsum("st,btk->bsk", self.mix, self.value(hidden))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def looking(mix: Tensor, calls: int = 3) -> Block:
    module = Looking(mix)
    for number, parameter in enumerate(module.parameters()):
        parameter.data = 0.3 * draw(*parameter.shape, seed=10 + number)
    return make_block("block", module, [Call((draw(2, TOKENS, WIDTH, seed=seed),), {}) for seed in range(calls)])


def by_hand(block: Block, number: int) -> np.ndarray:
    """dL/dy of each token is a sum over those that look at it: the sign over the size of who looks, times how much."""
    output = block.targets[number].double().numpy()
    draw_signs = torch.Generator().manual_seed(number)
    signs = (torch.randint(0, 2, output.shape, generator=draw_signs) * 2 - 1).numpy()
    reached = signs / np.sqrt((output**2).mean(-1, keepdims=True))
    slopes = np.einsum("st,bsk->btk", block.module.mix.double().numpy(), reached)
    return (slopes**2).mean(-1).ravel()


def test_it_is_the_square_of_the_derivative(monkeypatch):
    monkeypatch.setattr("woqfx.blocks.importance.gradient_products", nullcontext)
    block = looking(draw(TOKENS, TOKENS, seed=5))
    found = token_importance(block, ["value.weight"])["value.weight"]
    expected = [by_hand(block, number) for number in range(3)]
    mean = np.concatenate(expected).mean()
    for (one,), other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other / mean, rtol=1e-4)


def test_the_token_that_all_look_at_counts_most():
    mix = 0.1 * torch.eye(TOKENS)
    mix[:, 0] = 1
    for (one,) in token_importance(looking(mix), ["value.weight"])["value.weight"]:
        first, *others = one.view(2, TOKENS).mean(0).tolist()
        assert first > 50 * max(others)


def test_where_the_output_depends_on_nothing_all_count_alike():
    found = token_importance(looking(torch.eye(TOKENS)), ["unused.weight"])["unused.weight"]
    assert all(torch.equal(one, torch.ones(2 * TOKENS)) for (one,) in found)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "mixtral"])
def test_real_blocks(family):
    """One number for each token of each use, 1 in the mean; the same for any number of threads."""
    for block in tiny_blocks(family, batches=3).values():
        names = [name for group in find_groups(block, list(block.layers)) if group.uses for name in group.names]
        found = token_importance(block, names)
        other = token_importance(dataclasses.replace(block, workers=2), names)
        inputs = collect(block, find_groups(block, names))
        assert list(found) == names
        for name, calls in found.items():
            every = torch.cat([part for parts in calls for part in parts])
            assert len(every) == inputs[name][0].tokens
            assert float(every.mean()) == pytest.approx(1, rel=1e-4)
            assert torch.equal(every, torch.cat([part for parts in other[name] for part in parts]))


def test_tokens_that_are_routed_otherwise_count_alike():
    block = looking(draw(TOKENS, TOKENS, seed=5))
    groups = find_groups(block, ["value.weight"])
    fewer = {"value.weight": [[torch.full((3,), 2.0)], [], [torch.ones(2 * TOKENS)]]}
    plain, weighed = collect(block, groups), collect(block, groups, None, fewer)
    assert torch.equal(plain["value.weight"][0].moments, weighed["value.weight"][0].moments)


def test_moments_count_tokens_by_importance():
    block = looking(draw(TOKENS, TOKENS, seed=5))
    groups = find_groups(block, ["value.weight", "unused.weight"])
    importance = token_importance(block, ["value.weight"])
    plain, weighed = collect(block, groups), collect(block, groups, None, importance)
    x = torch.cat([call.args[0].flatten(0, 1) for call in block.calls]).double()
    counts = torch.cat([one for (one,) in importance["value.weight"]]).double()
    expected = (x * counts.unsqueeze(1)).T @ x / len(x)
    torch.testing.assert_close(weighed["value.weight"][0].moments.double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(weighed["unused.weight"][0].moments, plain["unused.weight"][0].moments)
    for name, (one,) in plain.items():
        (other,) = weighed[name]
        assert one.tokens == other.tokens
        assert torch.equal(one.mean, other.mean) and torch.equal(one.mean_abs, other.mean_abs)
