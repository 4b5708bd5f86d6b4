"""The built-in compute dtypes: fp32, bf16 and int8."""

from __future__ import annotations

import woqfx


@woqfx.hookimpl
def woqfx_compute_dtypes() -> list[woqfx.ComputeDType]:
    """Give the three; imported when asked for, since they need torch."""
    from woqfx_compute.references import BF16, FP32, Int8

    return [FP32(), BF16(), Int8()]
