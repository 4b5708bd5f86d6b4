"""Moving numbers by their gradients, in place: Adam, and gradient descent with momentum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor


class Optimizer(ABC):
    """Moves `values`, float32 tensors by name, each at its rate of `rates`."""

    def __init__(self, values: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        self.values, self.rates = dict(values), dict(rates)
        self.mean = {name: torch.zeros_like(value) for name, value in values.items()}
        self.count = torch.zeros((), dtype=torch.int64)

    @abstractmethod
    def step(self, gradients: Mapping[str, Tensor], share: float) -> None:
        """Move all values, at this share of their rates."""

    def state(self) -> dict[str, Tensor]:
        """All that steps change, the values too, by name: the tensors themselves."""
        kinds = {"value": self.values, "mean": self.mean}
        named = {f"{kind}:{name}": one for kind, tensors in kinds.items() for name, one in tensors.items()}
        return {"count": self.count, **named}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Become as it was when its `state` was this."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


class Adam(Optimizer):
    """Kingma and Ba, arXiv 1412.6980, algorithm 1: each number moves by its own gradients' mean over their size.

    The short memory suits the few steps that are taken here.
    """

    decays = (0.9, 0.95)

    def __init__(self, values: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        super().__init__(values, rates)
        self.square = {name: torch.zeros_like(value) for name, value in values.items()}

    def step(self, gradients: Mapping[str, Tensor], share: float) -> None:
        """See `Optimizer.step`."""
        self.count += 1
        count, (first, second) = int(self.count), self.decays
        for name, value in self.values.items():
            mean, square, gradient = self.mean[name], self.square[name], gradients[name]
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            size = (square / (1 - second**count)).sqrt_().add_(1e-30)
            value.addcdiv_(mean, size, value=-share * self.rates[name] / (1 - first**count))

    def state(self) -> dict[str, Tensor]:
        """See `Optimizer.state`."""
        return {**super().state(), **{f"square:{name}": one for name, one in self.square.items()}}


class Momentum(Optimizer):
    """Each number moves by its gradients' mean over the size of all: the root of their mean square over all numbers.

    What hardly matters hardly moves. Adam moves that as far as all else, by what is mostly noise if data are few. The
    mean begins at 0, so that first steps are short.
    """

    decays = (0.9, 0.9)

    def __init__(self, values: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        super().__init__(values, rates)
        self.square = torch.zeros((), dtype=torch.float64)

    def step(self, gradients: Mapping[str, Tensor], share: float) -> None:
        """See `Optimizer.step`."""
        self.count += 1
        count, (first, second) = int(self.count), self.decays
        total = sum(float(gradients[name].square().sum(dtype=torch.float64)) for name in self.values)
        numbers = sum(value.numel() for value in self.values.values())
        self.square.mul_(second).add_((1 - second) * total / numbers)
        size = float((self.square / (1 - second**count)).sqrt()) + 1e-30
        for name, value in self.values.items():
            self.mean[name].lerp_(gradients[name], 1 - first)
            value.add_(self.mean[name], alpha=-share * self.rates[name] / size)

    def state(self) -> dict[str, Tensor]:
        """See `Optimizer.state`."""
        return {**super().state(), "square": self.square}
