"""GPTQ: rounding a column at a time, each error made up for by the columns that are still to come."""

from __future__ import annotations

import woqfx


@woqfx.hookimpl
def woqfx_algorithms() -> list[type[woqfx.Algorithm]]:
    """Give GPTQ; imported when asked for, since it needs torch."""
    from woqfx_gptq.gptq import GPTQ

    return [GPTQ]
