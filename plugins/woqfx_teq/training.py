"""Training the scales of a block's feeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from woqfx import Block, Fold, gradient_products
from woqfx_teq.rounding import Clipping, find_clipping, join, straight_through

#: How often, while scales are trained, the clipping of groups is searched anew and the objective measured.
_MEASURES = 3
#: Adam's decay rates of the first and the second moment, those of the paper's code.
_BETAS = (0.9, 0.9)

#: For each feed of the block, the logarithms of its scales.
Scales = Sequence[Tensor]


@dataclass(frozen=True)
class Trained:
    """The best scales seen, float32 for each feed, and the objective: with these, and with all scales 1."""

    scales: list[Tensor]
    error: float
    error_before: float


class Objective(Protocol):
    """What the rounded weights of a block shall make small."""

    def loss(self, block: Block, number: int, weights: Mapping[str, Tensor]) -> Tensor:
        """Of one call, differentiable."""

    def measure(self, block: Block, weights: Mapping[str, Tensor]) -> float:
        """Of all calls."""


class OutputError:
    """The squared error of the block's output, relative to the output."""

    def loss(self, block: Block, number: int, weights: Mapping[str, Tensor]) -> Tensor:
        """See `Objective`."""
        target = block.targets[number]
        return (block.run(block.calls[number], weights) - target).square().sum() / target.square().sum()

    def measure(self, block: Block, weights: Mapping[str, Tensor]) -> float:
        """See `Objective`."""
        return block.error(weights)


class LanguageModelLoss:
    """What a whole model says of itself when it is run as a block (`Algorithm.survey`): the mean over its calls."""

    def loss(self, block: Block, number: int, weights: Mapping[str, Tensor]) -> Tensor:
        """See `Objective`."""
        return block.run(block.calls[number], weights)

    def measure(self, block: Block, weights: Mapping[str, Tensor]) -> float:
        """See `Objective`."""

        def one(number: int) -> float:
            with torch.no_grad():
                return float(self.loss(block, number, weights))

        return sum(block.map(one, range(len(block.calls)))) / len(block.calls)


class Trainer:
    """Trains what the feeds of a block, or of a whole model as one, are scaled by, every weight rounded.

    `clip` says whether groups are clipped by the inputs' moments, as they will be when weights are rounded.
    """

    def __init__(self, block: Block, objective: Objective, *, clip: bool) -> None:
        self._block, self._objective = block, objective
        self._inputs = block.statistics(list(block.layers)) if clip else {}
        self._clippings: dict[str, Clipping] = {}

    def train(self, start: Scales, *, steps: int, learning_rate: float, warmup: float, batch: int) -> Trained:
        """From `start`, by Adam with a linear rise and fall of its rate; the best of all points that were measured."""
        ones = [torch.zeros(feed.size) for feed in self._block.feeds]
        before = best = self._measure(ones)
        kept = ones
        scales = [logarithm.clone().requires_grad_() for logarithm in start]
        optimizer = torch.optim.Adam(scales, lr=learning_rate, betas=_BETAS)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _triangle(step, steps, warmup))
        batches = self._batches(batch)
        for step in range(steps + 1):
            if step % max(1, steps // _MEASURES) == 0 or step == steps:
                error = self._measure(scales)
                if error < best:
                    best, kept = error, [logarithm.detach().clone() for logarithm in scales]
            if step < steps:
                self._backward(scales, next(batches))
                optimizer.step()
                optimizer.zero_grad()
                rate.step()
        return Trained([logarithm.exp() for logarithm in kept], best, before)

    def _measure(self, scales: Scales) -> float:
        with torch.no_grad():
            folded = self._folded(scales)
            self._clippings = {name: self._clipping(name, scales, folded) for name in self._block.layers}
            return self._objective.measure(self._block, self._rounded(scales))

    def _folded(self, scales: Scales) -> dict[str, Tensor]:
        """All parameters, rescaled."""
        parameters = dict(self._block.parameters)
        for feed, logarithm in zip(self._block.feeds, scales, strict=True):
            parameters |= Fold(feed, logarithm.exp()).apply(parameters)
        return parameters

    def _rounded(self, scales: Scales) -> dict[str, Tensor]:
        """All parameters, rescaled and rounded, differentiable in the scales."""
        parameters = self._folded(scales)
        for name, layer in self._block.layers.items():
            rows = parameters[name].flatten(0, -2)
            rounded = straight_through(rows, layer.dtype, layer.scheme, self._clippings[name])
            parameters[name] = rounded.view(parameters[name].shape)
        return parameters

    def _clipping(self, name: str, scales: Scales, folded: Mapping[str, Tensor]) -> Clipping:
        """Of a weight, or of all experts of a stack as one weight of all their rows."""
        layer, weights = self._block.layers[name], folded[name]
        stack = weights.reshape(-1, *weights.shape[-2:])
        if name not in self._inputs:
            return find_clipping(stack.flatten(0, 1), layer, None)
        factors = self._factors(name, scales).expand(len(stack), -1)
        found = [
            find_clipping(weight, layer, seen.moments / factor / factor.unsqueeze(-1) if seen.tokens else None)
            for weight, factor, seen in zip(stack, factors, self._inputs[name], strict=True)
        ]
        return join(found)

    def _factors(self, name: str, scales: Scales) -> Tensor:
        """What the inputs of a weight are divided by: [experts, K], or [1, K]."""
        for feed, logarithm in zip(self._block.feeds, scales, strict=True):
            if name in feed.consumers:
                index = feed.consumers[name].reshape(-1, feed.consumers[name].shape[-1])
                return torch.where(index < 0, 1.0, logarithm.exp()[index.clamp(min=0)])
        return torch.ones(1, self._block.parameters[name].shape[-1])

    def _backward(self, scales: Scales, batch: Sequence[int]) -> None:
        """Add the objective's gradient on some calls to the scales: side by side, and summed in order."""
        weights = self._rounded(scales)
        fixed = {name: tensor.detach() for name, tensor in weights.items()}
        moving = [name for name, tensor in weights.items() if tensor.requires_grad]

        def gradients(number: int) -> tuple[Tensor, ...]:
            leaves = {name: fixed[name].clone().requires_grad_() for name in moving}
            with torch.enable_grad(), gradient_products():
                loss = self._objective.loss(self._block, number, {**fixed, **leaves})
            return torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)

        first, *others = self._block.map(gradients, batch)
        total = list(first)
        for part in others:
            total = [one + other for one, other in zip(total, part, strict=True)]
        torch.autograd.backward([weights[name] for name in moving], total)

    def _batches(self, size: int) -> Iterator[list[int]]:
        """Numbers of calls, `size` at a time, in a random order that is always the same."""
        draw = torch.Generator().manual_seed(0)
        waiting: list[int] = []
        while True:
            while len(waiting) < size:
                waiting += torch.randperm(len(self._block.calls), generator=draw).tolist()
            yield waiting[:size]
            del waiting[:size]


def _triangle(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at a step: up to 1 over a share of all steps, then down to 0."""
    rise = max(1.0, warmup * steps)
    return min((step + 1) / rise, (steps - step) / max(1.0, steps - rise))
