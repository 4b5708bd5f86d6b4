"""How a checkpoint is tuned."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from woqfx.errors import WoqfxError

_PRODUCTS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TuningOptions:
    """How a checkpoint is tuned.

    `passes` over the data are made. `rate` is how far numbers move in a step at first, relative to their size, if all
    steps agree: the root mean square over all of them.
    `products` is the type in which both models run, fp32 or bf16: the latter takes half the time on a CPU with
    instructions for it. `seed` decides the order of the data. Raises `WoqfxError` for values that cannot be meant.
    """

    passes: float = 2.0
    rate: float = 0.0001
    products: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("passes", "rate"):
            if not 0 < getattr(self, name) < 1e6:
                raise WoqfxError(f"tuning: {name} is {getattr(self, name)}: it must be a number above 0")
        if self.products not in _PRODUCTS:
            raise WoqfxError(f"tuning: products is {self.products!r}: it must be {' or '.join(_PRODUCTS)}")

    @property
    def kind(self) -> torch.dtype:
        """The type of products."""
        return _PRODUCTS[self.products]
