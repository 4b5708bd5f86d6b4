"""AWQ: input channels that matter are scaled up before rounding, and what feeds them is scaled down."""

from __future__ import annotations

import woqfx


@woqfx.hookimpl
def woqfx_algorithms() -> list[type[woqfx.Algorithm]]:
    """Give AWQ; imported when asked for, since it needs torch."""
    from woqfx_awq.awq import AWQ

    return [AWQ]
