"""What a quantized model remembers of its making, so that it can be saved as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from woqfx.errors import WoqfxError
from woqfx.format import StoredModel

_ATTRIBUTE = "woqfx_provenance"


@dataclass(frozen=True)
class Provenance:
    """The request, the error of each weight, the float model's config, its tied names, and its other files."""

    request: Mapping[str, Any]
    errors: Mapping[str, float | None]
    config: Mapping[str, Any] | None
    aliases: Mapping[str, str]
    sidecars: Mapping[str, bytes]

    @classmethod
    def of(cls, stored: StoredModel) -> Provenance:
        """What a checkpoint knows of its making."""
        errors = {name: stored.errors.get(name) for name in stored.weights}
        return cls(stored.request, errors, stored.config, stored.aliases, stored.sidecars())

    def attach(self, model: nn.Module) -> None:
        """Have the model remember it."""
        setattr(model, _ATTRIBUTE, self)

    @staticmethod
    def detach(model: nn.Module) -> None:
        """Have the model forget it: it is no quantized one any more."""
        vars(model).pop(_ATTRIBUTE, None)


def provenance_of(model: nn.Module) -> Provenance:
    """What `model` remembers. Raises `WoqfxError` if woqfx did not quantize it."""
    found = getattr(model, _ATTRIBUTE, None)
    if not isinstance(found, Provenance):
        raise WoqfxError(f"{type(model).__name__} was not quantized by woqfx: use woqfx.quantize or woqfx.load first")
    return found
