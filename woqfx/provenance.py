"""What a quantized model remembers of its making, so that it can be saved as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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
        """Have the model remember it; `save_pretrained`, where there is one, then writes woqfx's checkpoints."""
        setattr(model, _ATTRIBUTE, self)
        if hasattr(model, "save_pretrained"):
            setattr(model, "save_pretrained", partial(_save_pretrained, model))  # noqa: B010 - no attribute of a Module

    @staticmethod
    def detach(model: nn.Module) -> None:
        """Have the model forget it: it is no quantized one any more."""
        for name in (_ATTRIBUTE, "save_pretrained"):
            vars(model).pop(name, None)


def _save_pretrained(model: nn.Module, save_directory: str | Path, **kwargs: Any) -> None:
    from woqfx.pretrained import save_pretrained

    save_pretrained(model, save_directory, **kwargs)


def provenance_of(model: nn.Module) -> Provenance:
    """What `model` remembers. Raises `WoqfxError` if woqfx did not quantize it."""
    found = getattr(model, _ATTRIBUTE, None)
    if not isinstance(found, Provenance):
        raise WoqfxError(f"{type(model).__name__} was not quantized by woqfx: use woqfx.quantize or woqfx.load first")
    return found
