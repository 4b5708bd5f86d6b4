"""How much the output of a block depends on what each token makes of a weight.

An error of a product y = W x at one token reaches the output of others: of the first token of a text, which attention
keeps coming back to, a wrong value shows everywhere. With second moments in which all tokens count alike, GPTQ makes up
for errors of the many at the cost of that one. So each token counts by |dL/dy|^2, where L is a sum of the block's
output with random signs, each token's over its size: the expectation of that is the squared norm of the derivative of
the output by y (Hutchinson's estimate), and the moments become the part of a Gauss-Newton matrix that belongs to W.
Attention as a weight is due to Sung et al. (RSQ, arXiv 2503.01820), gradients to Kim et al. (GuidedQuant, 2505.07004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from woqfx.gradients import gradient_products

if TYPE_CHECKING:
    from woqfx.blocks.block import Block

#: By a weight's name, for each call of the block, for each use in it: the importance of each token, float32 [tokens].
Importance = Mapping[str, Sequence[Sequence[Tensor]]]


def token_importance(block: Block, names: Sequence[str]) -> Importance:
    """The importance of the tokens for each of these weights [N, K], 1 in the mean over all of them."""

    def one(number: int) -> dict[str, list[Tensor]]:
        with torch.enable_grad(), gradient_products():
            output, made = block.products(block.calls[number], names)
            size = output.detach().float().square().mean(-1, keepdim=True).clamp(min=1e-30).sqrt()
            draw = torch.Generator().manual_seed(number)
            signs = torch.randint(0, 2, output.shape, generator=draw) * 2 - 1
            slopes = _slopes((output / size * signs).sum(), [product for _, product in made])
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for (name, _), slope in zip(made, slopes, strict=True):
            found[name].append(slope.float().square().mean(-1).flatten())
        return found

    calls = block.map(one, range(len(block.calls)))
    return {name: _normalized([found[name] for found in calls]) for name in names}


def _slopes(loss: Tensor, products: Sequence[Tensor]) -> Sequence[Tensor]:
    """The derivatives of `loss`; 0 where it depends on nothing."""
    if not loss.requires_grad:
        return [torch.zeros_like(product) for product in products]
    return torch.autograd.grad(loss, products, materialize_grads=True)


def _normalized(calls: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """All divided by their mean. Where the output depends on none of them, all count alike."""
    every = [part for parts in calls for part in parts]
    mean = torch.cat(every).mean() if every else torch.zeros(())
    return [[part / mean if mean > 0 else torch.ones_like(part) for part in parts] for parts in calls]
