"""The built-in dtypes pass the suite that a stranger's pass."""

from __future__ import annotations

from woqfx.testing import DTypeSuite
from woqfx_dtypes.grids import (
    FP4BNB,
    FP4E2M1,
    FP4E2M1ITREX,
    IQ4NL,
    NF4,
    Int2,
    Int3,
    Int4Clip,
    Int4FullRange,
    Int5,
    Int6,
    Int7,
    Int8,
)


class TestInt8(DTypeSuite):
    dtype = Int8()


class TestInt4Clip(DTypeSuite):
    dtype = Int4Clip()


class TestInt4FullRange(DTypeSuite):
    dtype = Int4FullRange()


class TestInt7(DTypeSuite):
    dtype = Int7()


class TestInt6(DTypeSuite):
    dtype = Int6()


class TestInt5(DTypeSuite):
    dtype = Int5()


class TestInt3(DTypeSuite):
    dtype = Int3()


class TestInt2(DTypeSuite):
    dtype = Int2()


class TestNF4(DTypeSuite):
    dtype = NF4()


class TestFP4E2M1(DTypeSuite):
    dtype = FP4E2M1()


class TestFP4BNB(DTypeSuite):
    dtype = FP4BNB()


class TestFP4E2M1ITREX(DTypeSuite):
    dtype = FP4E2M1ITREX()


class TestIQ4NL(DTypeSuite):
    dtype = IQ4NL()
