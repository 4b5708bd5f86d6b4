"""The built-in dtypes pass the suite that a stranger's pass."""

from __future__ import annotations

from woqfx.testing import DTypeSuite
from woqfx_dtypes.grids import FP4E2M1, NF4, Int4Clip, Int4FullRange, Int8


class TestInt8(DTypeSuite):
    dtype = Int8()


class TestInt4Clip(DTypeSuite):
    dtype = Int4Clip()


class TestInt4FullRange(DTypeSuite):
    dtype = Int4FullRange()


class TestNF4(DTypeSuite):
    dtype = NF4()


class TestFP4E2M1(DTypeSuite):
    dtype = FP4E2M1()
