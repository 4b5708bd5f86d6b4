"""Round to nearest, with an optional search for the best clipping of each group."""

from __future__ import annotations

import woqfx


@woqfx.hookimpl
def woqfx_algorithms() -> list[type[woqfx.Algorithm]]:
    """Give RTN; imported when asked for, since it needs torch."""
    from woqfx_rtn.rtn import RTN

    return [RTN]
