"""Bit packing against Python's big integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from woqfx.packing import pack, packed_width, unpack


@st.composite
def rows_of_codes(draw: st.DrawFn) -> tuple[int, list[int]]:
    bits = draw(st.integers(1, 8))
    return bits, draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=70))


@given(rows_of_codes())
def test_the_documented_order(row):
    bits, codes = row
    stream = sum(code << (k * bits) for k, code in enumerate(codes))
    expected = stream.to_bytes(-(-len(codes) * bits // 8), "little")
    packed = pack(torch.tensor([codes], dtype=torch.uint8), bits)
    assert packed.dtype == torch.uint8
    assert bytes(packed[0].tolist()) == expected
    assert packed_width(len(codes), bits) == len(expected)
    assert unpack(packed, bits, len(codes)).tolist() == [codes]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3)], ids=str)
def test_leading_dimensions_are_rows(bits, lead):
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (*lead, 37), generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (*lead, packed_width(37, bits))
    assert torch.equal(unpack(packed, bits, 37), codes)
    single = torch.stack([pack(row, bits) for row in codes.reshape(-1, 37)]).view(packed.shape)
    assert torch.equal(packed, single)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 64])
def test_a_view_that_is_not_contiguous(bits, k):
    codes = torch.arange(4 * 2 * k, dtype=torch.int32).remainder(2**bits).to(torch.uint8).view(4, 2 * k)[:, ::2]
    packed = pack(codes, bits)
    assert packed.is_contiguous()
    assert torch.equal(unpack(packed, bits, k), codes)


def test_four_bits_by_hand():
    assert pack(torch.tensor([1, 2, 15], dtype=torch.uint8), 4).tolist() == [0x21, 0x0F]


def test_three_bits_by_hand():
    assert pack(torch.tensor([1, 2, 7], dtype=torch.uint8), 3).tolist() == [0b11_010_001, 0b1]


def test_codes_of_odd_strides():
    """A transposed column counts as contiguous for PyTorch, with strides that no wider type fits."""
    column = torch.arange(16, dtype=torch.uint8).view(16, 1)
    turned = column.T.contiguous()
    assert turned.stride() == (1, 1)
    assert torch.equal(unpack(pack(turned, 4), 4, 16), column.T)
