"""A backend that runs whole language models natively."""

from __future__ import annotations

import woqfx


@woqfx.hookimpl
def woqfx_backends() -> list[woqfx.Backend]:
    """Give the backend; imported when asked for, since it needs torch."""
    return []
