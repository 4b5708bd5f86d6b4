"""What can go wrong with a request."""

from __future__ import annotations

from woqfx.errors import WoqfxError


class ContextError(WoqfxError, ValueError):
    """A sequence would be longer than the model, or the memory for keys and values, allows."""


class RequestError(WoqfxError):
    """A request cannot be carried out, or was given up."""
