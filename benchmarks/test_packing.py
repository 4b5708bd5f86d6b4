"""Bit packing."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import Timed
from woqfx.packing import lookup, pack, packed_width, unpack

N, K = 1024, 2048


def _codes(bits: int, k: int) -> torch.Tensor:
    return torch.randint(0, 1 << bits, (N, k), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# At 8 bits there is nothing to do; 3 bits stand for all widths that cross bytes, and an odd length for ragged rows.
SIZES = {"3bit": (3, K // 4), "4bit": (4, K), "4bit-odd": (4, K // 4 - 1)}


@pytest.mark.parametrize(("bits", "k"), SIZES.values(), ids=SIZES)
def test_pack(timed: Timed, bits: int, k: int) -> None:
    """A byte a code to `bits` bits a code."""
    codes = _codes(bits, k)
    timed(lambda: pack(codes, bits), moved=N * (k + packed_width(k, bits)))


@pytest.mark.parametrize(("bits", "k"), SIZES.values(), ids=SIZES)
def test_unpack(timed: Timed, bits: int, k: int) -> None:
    """And back."""
    packed = pack(_codes(bits, k), bits)
    timed(lambda: unpack(packed, bits, k), moved=N * (k + packed_width(k, bits)))


@pytest.mark.parametrize("bits", [4, 8])
def test_lookup(timed: Timed, bits: int) -> None:
    """Codes to the float32 entries of a table."""
    packed, table = pack(_codes(bits, K), bits), torch.linspace(-1, 1, 1 << bits)
    timed(lambda: lookup(packed, bits, table, K), moved=N * (packed_width(K, bits) + 4 * K))
