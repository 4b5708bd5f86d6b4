"""Adam, on one tensor in place."""

from __future__ import annotations

import torch
from torch import Tensor


class Adam:
    """Kingma and Ba, arXiv 1412.6980, algorithm 1. The short memory suits the few steps that are taken here."""

    def __init__(self, value: Tensor, rate: float, decays: tuple[float, float] = (0.9, 0.95)) -> None:
        self.value, self.rate, self.decays = value, rate, decays
        self._mean, self._square, self._count = torch.zeros_like(value), torch.zeros_like(value), 0

    def step(self, gradient: Tensor, share: float) -> None:
        """Move `value`, at this share of the rate."""
        self._count += 1
        first, second = self.decays
        self._mean.lerp_(gradient, 1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        size = (self._square / (1 - second**self._count)).sqrt_().add_(1e-30)
        self.value.addcdiv_(self._mean, size, value=-share * self.rate / (1 - first**self._count))
