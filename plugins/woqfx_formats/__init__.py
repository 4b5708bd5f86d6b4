"""Other people's checkpoints: read packed, and written where the grid fits."""

from __future__ import annotations

import woqfx


@woqfx.hookimpl
def woqfx_formats() -> list[woqfx.Format]:
    """Give the formats; imported when asked for, since they need torch."""
    return []
