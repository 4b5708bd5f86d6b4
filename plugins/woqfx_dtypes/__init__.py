"""The built-in weight dtypes: int8, int4_fullrange, int4_clip, nf4 and fp4_e2m1."""

from __future__ import annotations

import woqfx


@woqfx.hookimpl
def woqfx_dtypes() -> list[woqfx.DType]:
    """Give the five; imported when asked for, since they need torch."""
    from woqfx_dtypes.grids import FP4E2M1, NF4, Int4Clip, Int4FullRange, Int8

    return [Int8(), Int4FullRange(), Int4Clip(), NF4(), FP4E2M1()]
