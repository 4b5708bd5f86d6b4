"""Learning how a block is rounded: by the gradient of its output's error."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from woqfx import Block, QTensor
from woqfx_best.adam import Adam
from woqfx_best.latent import Latent

#: Rates of groups' scales and of vectors, relative to themselves, where that of a rounded number is one cell.
_GAIN, _VECTOR = 0.5, 0.1


class Learning:
    """Moves what is rounded, the groups' scales, and vectors such as norms' weights, against the output's error.

    The error is the mean over tokens of |output - target|^2, each token's over the mean square of its target: a few
    tokens of enormous size (attention sinks) would otherwise outweigh all others. One step looks at `calls` calls
    of the block, shuffled; their gradients are added in a fixed order.
    """

    def __init__(self, block: Block, quantized: Mapping[str, QTensor], rate: float, seed: int = 0) -> None:
        self._block = block
        self.latents = {name: Latent(block.parameters[name], q) for name, q in quantized.items() if len(q.shape) == 2}
        self._fixed = {name: q.dequantize() for name, q in quantized.items() if name not in self.latents}
        self.vectors = {name: t.clone() for name, t in block.parameters.items() if t.dim() == 1}
        self._draw = torch.Generator().manual_seed(seed)
        self._adams: dict[str, list[Adam]] = {}
        for name, latent in self.latents.items():
            self._adams[name] = [Adam(latent.steps, rate * latent.step), Adam(latent.gain, rate * _GAIN)]
        for name, vector in self.vectors.items():
            self._adams[name] = [Adam(vector, rate * _VECTOR * float(vector.abs().mean()))]

    def run(self, iterations: int, calls: int) -> None:
        """Take this many steps, the rate falling to nothing by a half cosine."""
        queue: list[int] = []
        for number in range(iterations):
            while len(queue) < calls:
                queue += torch.randperm(len(self._block.calls), generator=self._draw).tolist()
            chosen, queue = queue[:calls], queue[calls:]
            self._step(chosen, 0.5 + 0.5 * math.cos(math.pi * number / iterations))

    def error(self) -> float:
        """The mean error of all calls."""
        current = self.parameters()

        def one(index: int) -> float:
            with torch.no_grad():
                return float(token_error(self._block.run(self._block.calls[index], current), self._target(index)))

        errors = self._block.map(one, range(len(self._block.calls)))
        return sum(errors) / len(errors)

    def parameters(self) -> dict[str, Tensor]:
        """What the block computes with now."""
        return {**self._fixed, **{name: one.weight() for name, one in self.latents.items()}, **self.vectors}

    def results(self) -> dict[str, QTensor | Tensor]:
        """What `Algorithm.refine` gives."""
        return {**{name: one.qtensor() for name, one in self.latents.items()}, **self.vectors}

    def _step(self, chosen: list[int], share: float) -> None:
        current = self.parameters()
        learned = [*self.latents, *self.vectors]

        def gradients(index: int) -> list[Tensor]:
            with torch.enable_grad():
                leaves = {name: current[name].detach().requires_grad_() for name in learned}
                loss = token_error(
                    self._block.run(self._block.calls[index], {**current, **leaves}), self._target(index)
                )
                return list(torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True))

        sums: list[Tensor] = []
        for found in self._block.map(gradients, chosen):
            sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
        for name, gradient in zip(learned, sums, strict=True):
            adams = self._adams[name]
            if name in self.vectors:
                adams[0].step(gradient, share)
                continue
            latent = self.latents[name]
            for adam, part in zip(adams, latent.backward(gradient), strict=True):
                adam.step(part, share)
            latent.steps.clamp_(latent.low - latent.step / 2, latent.high + latent.step / 2)

    def _target(self, index: int) -> Tensor:
        return self._block.targets[index].float()


def token_error(output: Tensor, target: Tensor) -> Tensor:
    """The mean over tokens of |output - target|^2 / |target|^2."""
    size = target.square().mean(-1).clamp(min=1e-30)
    return ((output.float() - target).square().mean(-1) / size).mean()
