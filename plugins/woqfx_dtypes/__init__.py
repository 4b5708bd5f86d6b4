"""The built-in weight dtypes: integer grids of 2 to 8 bits, and codebooks of 4."""

from __future__ import annotations

import woqfx


@woqfx.hookimpl
def woqfx_dtypes() -> list[woqfx.DType]:
    """Give them; imported when asked for, since they need torch."""
    from woqfx_dtypes import grids

    integers = [grids.Int8(), grids.Int7(), grids.Int6(), grids.Int5(), grids.Int3(), grids.Int2()]
    codebooks = [grids.NF4(), grids.FP4E2M1(), grids.FP4BNB(), grids.FP4E2M1ITREX(), grids.IQ4NL()]
    return [*integers, grids.Int4FullRange(), grids.Int4Clip(), *codebooks]
