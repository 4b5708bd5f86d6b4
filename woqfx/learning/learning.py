"""Learning a quantized block, or a whole model as one, by the gradient of a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from woqfx.blocks.block import Block
from woqfx.learning.adam import Adam
from woqfx.learning.latent import Latent
from woqfx.qtensor import QTensor

#: The loss of one call of the block, by its number, with these parameters: a scalar, differentiable in them.
Loss = Callable[[int, Mapping[str, Tensor]], Tensor]
#: Told after each step how many are done, and its loss.
Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Rates:
    """How far numbers move in a step at the start. What has rate 0 stays as it is.

    `codes` is for what is rounded, as a share of a cell of the grid; `scales` and `vectors` (norms' weights, biases)
    are relative to the size of each.
    """

    codes: float
    scales: float
    vectors: float


class Learning:
    """Moves what is rounded, the groups' scales, and vectors such as norms' weights, so that a loss falls.

    `quantized` are the block's weights, by name. Stacks of experts and weights whose groups have float offsets stay.
    Gradients pass through rounding (arXiv 1308.3432), and Adam takes the steps. The gradients of a step's calls are
    added in their order: the number of threads changes nothing.
    """

    def __init__(self, block: Block, quantized: Mapping[str, QTensor], loss: Loss, rates: Rates, seed: int = 0) -> None:
        self._block, self._loss = block, loss
        learned = {name: q for name, q in quantized.items() if len(q.shape) == 2 and q.offsets is None}
        self.latents = {name: Latent(block.parameters[name], q) for name, q in learned.items()}
        self._fixed = {name: q.dequantize() for name, q in quantized.items() if name not in learned}
        self.vectors = {
            name: tensor.clone()
            for name, tensor in block.parameters.items()
            if tensor.dim() == 1 and tensor.is_floating_point() and rates.vectors
        }
        self._draw = torch.Generator().manual_seed(seed)
        self._of_codes: dict[str, Adam] = {}
        self._of_scales: dict[str, Adam] = {}
        for name, latent in self.latents.items():
            if rates.codes:
                self._of_codes[name] = Adam(latent.steps, rates.codes * latent.step)
            if rates.scales:
                self._of_scales[name] = Adam(latent.gain, rates.scales)
        self._of_vectors = {
            name: Adam(vector, rates.vectors * float(vector.abs().mean())) for name, vector in self.vectors.items()
        }

    def run(self, calls: Sequence[int], steps: int, batch: int, report: Report | None = None) -> None:
        """Take this many steps, each on `batch` of the calls, shuffled; the rate falls to nothing by a half cosine."""
        queue: list[int] = []
        for number in range(steps):
            while len(queue) < batch:
                queue += [calls[place] for place in torch.randperm(len(calls), generator=self._draw).tolist()]
            chosen, queue = queue[:batch], queue[batch:]
            loss = self._step(chosen, 0.5 + 0.5 * math.cos(math.pi * number / steps))
            if report:
                report(number + 1, loss)

    def error(self, calls: Sequence[int]) -> float:
        """The mean loss of these calls with what `results` gives, which is what will be stored."""
        stored = {name: one.qtensor().dequantize() for name, one in self.latents.items()}
        current = {**self._fixed, **stored, **self.vectors}

        def one(number: int) -> float:
            with torch.no_grad():
                return float(self._loss(number, current))

        losses = self._block.map(one, calls)
        return sum(losses) / len(losses)

    def results(self) -> dict[str, QTensor | Tensor]:
        """All that may have changed, by name."""
        return {**{name: one.qtensor() for name, one in self.latents.items()}, **self.vectors}

    def _step(self, chosen: Sequence[int], share: float) -> float:
        current = {**self._fixed, **{name: one.weight() for name, one in self.latents.items()}, **self.vectors}
        learned = [*self.latents, *self.vectors]

        def gradients(number: int) -> tuple[float, list[Tensor]]:
            with torch.enable_grad():
                leaves = {name: current[name].detach().requires_grad_() for name in learned}
                loss = self._loss(number, {**current, **leaves})
                found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            return float(loss), list(found)

        total, sums = 0.0, list[Tensor]()
        for loss, found in self._block.map(gradients, chosen):
            total += loss
            sums = [one.add_(other) for one, other in zip(sums, found, strict=True)] if sums else found
        for name, gradient in zip(learned, sums, strict=True):
            if name in self.vectors:
                self._of_vectors[name].step(gradient, share)
            else:
                self._move(name, gradient, share)
        return total / len(chosen)

    def _move(self, name: str, gradient: Tensor, share: float) -> None:
        latent = self.latents[name]
        of_steps, of_gain = latent.backward(gradient)
        if name in self._of_codes:
            self._of_codes[name].step(of_steps, share)
            latent.steps.clamp_(latent.low - latent.step / 2, latent.high + latent.step / 2)
        if name in self._of_scales:
            self._of_scales[name].step(of_gain, share)
