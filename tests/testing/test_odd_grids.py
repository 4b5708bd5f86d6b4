"""Grids that no built-in is like pass the suite: odd bits, few levels, tables out of order."""

from __future__ import annotations

from woqfx import Codebook, IntegerGrid
from woqfx.testing import DTypeSuite


def grid(bits_: int, full: bool = False) -> IntegerGrid:
    class Grid(IntegerGrid):
        name, bits, full_range = f"grid{bits_}", bits_, full

    return Grid()


def book(*levels: float, bits_: int) -> Codebook:
    class Book(Codebook):
        name, bits, table = "book", bits_, levels

    return Book()


class TestOneBit(DTypeSuite):
    dtype = book(-1.0, 1.0, bits_=1)


class TestTwoBits(DTypeSuite):
    dtype = grid(2)


class TestThreeBitsFullRange(DTypeSuite):
    dtype = grid(3, full=True)


class TestFiveBits(DTypeSuite):
    dtype = grid(5)


class TestSevenBitsFullRange(DTypeSuite):
    dtype = grid(7, full=True)


class TestEightBitsFullRange(DTypeSuite):
    dtype = grid(8, full=True)


class TestTernary(DTypeSuite):
    dtype = book(0.0, 1.0, -1.0, bits_=2)


class TestThirteenLevelsOutOfOrder(DTypeSuite):
    dtype = book(3, 0, -0.5, 0.5, -1, 1, -1.5, 1.5, -2, 2, -3, 2.5, -2.5, bits_=4)


class TestEightBitTable(DTypeSuite):
    dtype = book(*(i * abs(i) / 127**2 for i in range(-127, 128)), bits_=8)


class TestLopsided(DTypeSuite):
    """The largest magnitude is on one side: a group that reaches to the other is clipped, twice if stored twice."""

    dtype = book(-2.0, -1.0, 0.0, 1.0, bits_=2)
    idempotent = False
