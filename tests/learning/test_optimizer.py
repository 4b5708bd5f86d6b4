"""Optimizers, against PyTorch's."""

from __future__ import annotations

import pytest
import torch

from woqfx.learning.optimizer import Adam, Momentum, Optimizer


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit_gradients(seed: int) -> dict[str, torch.Tensor]:
    """Two, whose root mean square over all numbers is 1."""
    both = draw(8, seed=seed)
    both /= both.square().mean().sqrt()
    return {"a": both[:5], "b": both[5:]}


def follow(optimizer: Optimizer, seeds: range) -> None:
    for seed in seeds:
        optimizer.step(unit_gradients(seed), 1.0)


def test_adam_is_pytorchs():
    ours, theirs = draw(5), draw(5).requires_grad_()
    adam = Adam({"a": ours}, {"a": 0.1})
    optimizer = torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.95), eps=1e-30)
    for seed in range(1, 6):
        gradient = draw(5, seed=seed)
        adam.step({"a": gradient}, 1.0)
        theirs.grad = gradient
        optimizer.step()
    assert torch.allclose(ours, theirs.detach(), rtol=1e-5)


def test_momentum_is_that_of_pytorchs_gradient_descent():
    ours, theirs = draw(5), draw(5).requires_grad_()
    momentum = Momentum({"a": ours, "b": draw(3)}, {"a": 0.1, "b": 0.1})
    optimizer = torch.optim.SGD([theirs], lr=0.1 * (1 - 0.9), momentum=0.9)  # a sum where ours is a mean
    for seed in range(1, 6):
        momentum.step(unit_gradients(seed), 1.0)
        theirs.grad = unit_gradients(seed)["a"]
        optimizer.step()
    assert torch.allclose(ours, theirs.detach(), rtol=1e-5)


def test_the_size_of_gradients_changes_nothing_in_momentum_and_their_proportions_do():
    def moved(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        values = {"a": torch.zeros(5), "b": torch.zeros(3)}
        momentum = Momentum(values, {"a": 0.1, "b": 0.1})
        for seed in range(3):
            momentum.step({"a": scale * unit_gradients(seed)["a"], "b": scale * 1e-3 * torch.ones(3)}, 1.0)
        return values["a"], values["b"]

    (a, b), (other_a, other_b) = moved(1.0), moved(1e-6)
    assert torch.allclose(a, other_a, rtol=1e-5)
    assert torch.allclose(b, other_b, rtol=1e-5)
    assert b.abs().max() < 0.01 * a.abs().max()


@pytest.mark.parametrize("kind", [Adam, Momentum])
def test_going_on_from_a_state_is_going_on(kind):
    straight, stopped = ({"a": draw(5), "b": draw(3)} for _ in range(2))
    rates = {"a": 0.1, "b": 0.2}
    follow(kind(straight, rates), range(6))
    first = kind(stopped, rates)
    follow(first, range(3))
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    resumed = {"a": torch.zeros(5), "b": torch.zeros(3)}
    second = kind(resumed, rates)
    second.restore(state)
    follow(second, range(3, 6))
    assert all(torch.equal(resumed[name], straight[name]) for name in rates)
