"""What `best` makes small: the error of a block's output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from woqfx import Block, gradient_products


@dataclass(frozen=True, eq=False)
class OutputError:
    """The error of the output of one call of a block, by its number, with these parameters."""

    block: Block

    def __call__(self, number: int, parameters: Mapping[str, Tensor]) -> Tensor:
        """Differentiable."""
        with gradient_products():
            output = self.block.run(self.block.calls[number], parameters)
        return token_error(output, self.block.targets[number].float())


def token_error(output: Tensor, target: Tensor) -> Tensor:
    """The mean over tokens of |output - target|^2 / |target|^2.

    By each token's own size: a few of enormous size (attention sinks) would otherwise outweigh all others.
    """
    size = target.square().mean(-1).clamp(min=1e-30)
    return ((output.float() - target).square().mean(-1) / size).mean()
