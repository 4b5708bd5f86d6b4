"""What a quantized model remembers of its making, so that it can be saved as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from woqfx.errors import WoqfxError

_ATTRIBUTE = "woqfx_provenance"


@dataclass(frozen=True)
class Provenance:
    """The request, the error of each weight, the float model's config, its tied names, and its other files."""

    request: Mapping[str, Any]
    errors: Mapping[str, float | None]
    config: Mapping[str, Any] | None
    aliases: Mapping[str, str]
    sidecars: Mapping[str, bytes]

    def attach(self, model: nn.Module) -> None:
        """Have the model remember it, and refuse transformers' way of saving, which would lose the weights."""
        setattr(model, _ATTRIBUTE, self)
        if hasattr(model, "save_pretrained"):
            setattr(model, "save_pretrained", _refuse_save_pretrained)  # noqa: B010 - no attribute that a Module declares


def _refuse_save_pretrained(*_: Any, **__: Any) -> Any:
    raise WoqfxError("transformers cannot save weights that woqfx quantized: use woqfx.save(model, folder)")


def provenance_of(model: nn.Module) -> Provenance:
    """What `model` remembers. Raises `WoqfxError` if woqfx did not quantize it."""
    found = getattr(model, _ATTRIBUTE, None)
    if not isinstance(found, Provenance):
        raise WoqfxError(f"{type(model).__name__} was not quantized by woqfx: use woqfx.quantize or woqfx.load first")
    return found
