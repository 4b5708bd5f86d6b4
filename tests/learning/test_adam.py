"""Adam, against PyTorch's."""

from __future__ import annotations

import torch

from woqfx.learning.adam import Adam


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
