"""Learning a quantized block, or a whole model as one, by the gradient of a loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from woqfx.blocks.block import Block
from woqfx.learning.latent import Latent
from woqfx.learning.optimizer import Adam, Optimizer
from woqfx.learning.scaled import Scaled, ScaledVector
from woqfx.qtensor import QTensor

#: The loss of one call of the block, by its number, with these parameters: a scalar, differentiable in them.
Loss = Callable[[int, Mapping[str, Tensor]], Tensor]


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

    `quantized` are the block's weights, by name. Stacks of experts and weights whose groups have float offsets stay;
    if codes do, scales that are quantized themselves do too: their steps are larger than what is learned of them.
    `optimizer` takes the steps. The gradients of a step's calls are added in their order: the number of threads
    changes nothing.
    """

    def __init__(
        self,
        block: Block,
        quantized: Mapping[str, QTensor],
        loss: Loss,
        rates: Rates,
        seed: int = 0,
        optimizer: type[Optimizer] = Adam,
    ) -> None:
        self._block, self._loss, self._seed = block, loss, seed
        self._learned: dict[str, Scaled | ScaledVector] = {}
        own: dict[str, float] = {}
        for name, q in quantized.items():
            if _can_learn(q, rates):
                self._learned[name] = Latent(block.parameters[name], q) if rates.codes else Scaled(q)
                own[_key(name, "gain")] = rates.scales
        for name, one in self._learned.items():
            if isinstance(one, Latent):
                own[_key(name, "steps")] = rates.codes * one.step
        self._fixed = {name: q.dequantize() for name, q in quantized.items() if name not in self._learned}
        for name, tensor in block.parameters.items():
            if tensor.dim() == 1 and tensor.is_floating_point():
                self._learned[name] = ScaledVector(tensor)
                own[_key(name, "gain")] = rates.vectors
        values = {_key(name, part): value for name, one in self._learned.items() for part, value in one.parts().items()}
        self._optimizer = optimizer(values, own)

    def steps(self, calls: Sequence[int], count: int, batch: int, *, done: int = 0) -> Iterator[int]:
        """Take steps, each on `batch` of the calls, shuffled, and give after each how many of the `count` are done.

        The first `done` were taken before. The rate falls to nothing by a half cosine.
        """
        for number, chosen in enumerate(itertools.islice(_batches(calls, batch, self._seed), done, count), done):
            self._step(chosen, 0.5 + 0.5 * math.cos(math.pi * number / count))
            yield number + 1

    def state(self) -> dict[str, Tensor]:
        """All that steps have changed, by name: what `restore` needs to go on from here. Not copied."""
        return self._optimizer.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to where the `state` was this."""
        self._optimizer.restore(state)

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

    def _step(self, chosen: Sequence[int], share: float) -> None:
        current = {**self._fixed, **{name: one.weight() for name, one in self._learned.items()}}

        def gradients(number: int) -> dict[str, Tensor]:
            with torch.enable_grad():
                leaves = {name: current[name].detach().requires_grad_() for name in self._learned}
                loss = self._loss(number, {**current, **leaves})
                found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            return dict(self._parts(dict(zip(leaves, found, strict=True))))

        total, *others = self._block.map(gradients, chosen)
        for key, gradient in total.items():
            for other in others:
                gradient += other[key]
        self._optimizer.step(total, share)
        for one in self._learned.values():
            one.settle()

    def _parts(self, gradients: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """From gradients of weights to those of what is learned of each, which are smaller if codes stay."""
        while gradients:
            name, gradient = gradients.popitem()
            for part, found in self._learned[name].backward(gradient).items():
                yield _key(name, part), found


def _key(name: str, part: str) -> str:
    return f"{name}:{part}"


def _can_learn(q: QTensor, rates: Rates) -> bool:
    moves = bool(rates.codes) or (bool(rates.scales) and isinstance(q.scales, Tensor))
    return moves and len(q.shape) == 2 and q.offsets is None


def _batches(calls: Sequence[int], batch: int, seed: int) -> Iterator[list[int]]:
    """So many of the calls at a time, all of them before one comes again, each time in another order."""
    draw, queue = torch.Generator().manual_seed(seed), list[int]()
    while True:
        while len(queue) < batch:
            queue += [calls[place] for place in torch.randperm(len(calls), generator=draw).tolist()]
        yield queue[:batch]
        queue = queue[batch:]
