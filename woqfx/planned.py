"""The plan itself: what would happen to each weight, and what stands in the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch

from woqfx.backend import Support
from woqfx.blocks.finding import BlockInfo
from woqfx.errors import PlanError
from woqfx.layers import LayerInfo
from woqfx.request import Request
from woqfx.scheme import Scheme


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one weight. `scheme` None keeps it as it is; `why` says which rule decided."""

    layer: LayerInfo
    float_dtype: torch.dtype
    scheme: Scheme | None
    why: str
    support: Support | None
    nbytes: int

    @property
    def weights(self) -> int:
        """How many weights it holds."""
        return prod(self.layer.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits that it will take per weight, scales included."""
        return 8 * self.nbytes / max(self.weights, 1)


@dataclass(frozen=True)
class Plan:
    """What would happen to each weight of a model, and what stands in the way.

    Sizes are in bytes: `nbytes` on disk afterwards, `source_bytes` before, `memory` an estimate of the
    peak while quantizing from a folder. `seconds` is an estimate for this machine. `blocks` are those that an
    algorithm which looks at data goes through, in order; without such an algorithm there are none.
    """

    source: str
    request: Request
    layers: tuple[LayerPlan, ...]
    other_bytes: int
    source_bytes: int
    memory: int
    seconds: float
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    blocks: tuple[BlockInfo, ...] = ()

    @cached_property
    def quantized(self) -> Mapping[str, LayerPlan]:
        """The weights to quantize, by parameter name."""
        return {layer.layer.weight: layer for layer in self.layers if layer.scheme is not None}

    @property
    def nbytes(self) -> int:
        """Size on disk."""
        return self.other_bytes + sum(layer.nbytes for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """The mean over the quantized weights, scales included."""
        chosen = self.quantized.values()
        return 8 * sum(layer.nbytes for layer in chosen) / max(1, sum(layer.weights for layer in chosen))

    def check(self) -> None:
        """Raise `PlanError` with every problem at once."""
        if self.problems:
            raise PlanError(self.problems)

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return {
            "source": self.source,
            **self.request.to_json(),
            "backend": self.request.backend,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "bytes": self.nbytes,
            "source_bytes": self.source_bytes,
            "memory": self.memory,
            "seconds": round(self.seconds, 1),
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "layers": [
                {
                    "name": plan.layer.name,
                    "role": plan.layer.role.value,
                    "shape": list(plan.layer.shape),
                    "scheme": plan.scheme and plan.scheme.to_json(),
                    "why": plan.why,
                    "kernel": plan.support.kernel if plan.support else None,
                    "bits_per_weight": round(plan.bits_per_weight, 4),
                    "bytes": plan.nbytes,
                }
                for plan in self.layers
            ],
        }
