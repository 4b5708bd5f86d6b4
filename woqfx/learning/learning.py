"""Learning a quantized block, or a whole model as one, by the gradient of a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from woqfx.blocks.block import Block
from woqfx.learning.adam import Adam
from woqfx.learning.latent import Latent
from woqfx.learning.scaled import Scaled, ScaledVector
from woqfx.qtensor import QTensor

#: The loss of one call of the block, by its number, with these parameters: a scalar, differentiable in them.
Loss = Callable[[int, Mapping[str, Tensor]], Tensor]
#: Told after each step how many are done.
Report = Callable[[int], None]


@dataclass(frozen=True)
class Rates:
    """How far numbers move in a step at the start.

    `codes` is for what is rounded, as a share of a cell of the grid; `scales` and `vectors` (norms' weights, biases)
    are relative to the size of each. What has rate 0 stays as it is.
    """

    codes: float
    scales: float
    vectors: float


class Learning:
    """Moves what is rounded, the groups' scales, and vectors such as norms' weights, so that a loss falls.

    `quantized` are the block's weights, by name. Stacks of experts and weights whose groups have float offsets stay.
    Adam takes the steps. The gradients of a step's calls are added in their order: the number of threads changes
    nothing.
    """

    def __init__(self, block: Block, quantized: Mapping[str, QTensor], loss: Loss, rates: Rates, seed: int = 0) -> None:
        self._block, self._loss = block, loss
        self._draw = torch.Generator().manual_seed(seed)
        self._learned: dict[str, Scaled | ScaledVector] = {}
        self._adams: dict[str, dict[str, Adam]] = {}
        for name, q in quantized.items():
            if len(q.shape) == 2 and q.offsets is None and (rates.codes or rates.scales):
                self._add(name, q, rates)
        self._fixed = {name: q.dequantize() for name, q in quantized.items() if name not in self._learned}
        for name, tensor in block.parameters.items():
            if tensor.dim() == 1 and tensor.is_floating_point():
                self._learned[name] = ScaledVector(tensor)
                self._adams[name] = {"gain": Adam(self._learned[name].gain, rates.vectors)}

    def run(self, calls: Sequence[int], steps: int, batch: int, report: Report | None = None) -> None:
        """Take this many steps, each on `batch` of the calls, shuffled; the rate falls to nothing by a half cosine."""
        queue: list[int] = []
        for number in range(steps):
            while len(queue) < batch:
                queue += [calls[place] for place in torch.randperm(len(calls), generator=self._draw).tolist()]
            chosen, queue = queue[:batch], queue[batch:]
            self._step(chosen, 0.5 + 0.5 * math.cos(math.pi * number / steps))
            if report:
                report(number + 1)

    def error(self, calls: Sequence[int]) -> float:
        """The mean loss of these calls with what `results` gives, which is what will be stored."""
        stored = {n: t.dequantize() if isinstance(t, QTensor) else t for n, t in self.results().items()}
        current = {**self._fixed, **stored}

        def one(number: int) -> float:
            with torch.no_grad():
                return float(self._loss(number, current))

        losses = self._block.map(one, calls)
        return sum(losses) / len(losses)

    def results(self) -> dict[str, QTensor | Tensor]:
        """All that may have changed, by name."""
        return {name: one.result() for name, one in self._learned.items()}

    def _add(self, name: str, q: QTensor, rates: Rates) -> None:
        if rates.codes:
            latent = Latent(self._block.parameters[name], q)
            self._learned[name] = latent
            self._adams[name] = {"steps": Adam(latent.steps, rates.codes * latent.step)}
        else:
            self._learned[name] = Scaled(q)
            self._adams[name] = {}
        self._adams[name]["gain"] = Adam(self._learned[name].gain, rates.scales)

    def _step(self, chosen: Sequence[int], share: float) -> None:
        current = {**self._fixed, **{name: one.weight() for name, one in self._learned.items()}}

        def gradients(number: int) -> dict[str, dict[str, Tensor]]:
            with torch.enable_grad():
                leaves = {name: current[name].detach().requires_grad_() for name in self._learned}
                loss = self._loss(number, {**current, **leaves})
                found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            return dict(self._parts(dict(zip(leaves, found, strict=True))))

        first, *others = self._block.map(gradients, chosen)
        for name, parts in first.items():
            for part, gradient in parts.items():
                for other in others:
                    gradient += other[name][part]
                self._adams[name][part].step(gradient, share)
        for one in self._learned.values():
            one.settle()

    def _parts(self, gradients: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """From gradients of weights to those of what is learned of each, which are smaller if codes stay."""
        while gradients:
            name, gradient = gradients.popitem()
            yield name, self._learned[name].backward(gradient)
