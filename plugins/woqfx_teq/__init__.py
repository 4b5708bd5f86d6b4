"""TEQ: scales of input channels that are trained, on what rounding does to the block's output."""

from __future__ import annotations

import woqfx


@woqfx.hookimpl
def woqfx_algorithms() -> list[type[woqfx.Algorithm]]:
    """Give TEQ; imported when asked for, since it needs torch."""
    from woqfx_teq.teq import TEQ

    return [TEQ]
