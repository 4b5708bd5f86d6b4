"""One tensor that a run has worked on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from woqfx.qtensor import QTensor


@dataclass(frozen=True)
class Done:
    """A parameter that has been worked on: quantized, with its relative error, or kept; `changed` if it was rescaled.

    `block` is what the journal says of the block that this is the last tensor of; a later run begins behind it.
    """

    name: str
    result: QTensor | Tensor
    error: float | None
    block: Mapping[str, Any] | None = None
    changed: bool = False

    def parts(self) -> Mapping[str, Tensor]:
        """What to write, by stored name."""
        if isinstance(self.result, QTensor):
            return {f"{self.name}.{suffix}": part for suffix, part in self.result.tensors().items()}
        return {self.name: self.result}

    def facts(self) -> dict[str, Any]:
        """What the journal says of it."""
        return {"error": self.error} if self.block is None else {"error": self.error, "block": dict(self.block)}
