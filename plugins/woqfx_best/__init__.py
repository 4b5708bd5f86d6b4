"""Quality at the cost of time: rescaling, rounding with compensation, then learned rounding of whole blocks."""

from __future__ import annotations

import woqfx


@woqfx.hookimpl
def woqfx_algorithms() -> list[type[woqfx.Algorithm]]:
    """Give `best`; imported when asked for, since it needs torch."""
    from woqfx_best.best import Best

    return [Best]
