"""Bit packing: the one order in which codes lie in bytes.

Along the last dimension, code k of `bits` bits occupies bits [k * bits, (k + 1) * bits) of a stream
in which bit 0 is the lowest bit of byte 0 (little-endian throughout). Each row starts on a byte; the
bits after its last code are zero. For 4 bits the low nibble is the even code.
"""

from __future__ import annotations

import torch
from torch import Tensor


def packed_width(k: int, bits: int) -> int:
    """Bytes that a row of `k` codes takes."""
    return -(-k * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., K] below 2^bits to bytes [..., packed_width(K, bits)]."""
    if bits == 8:
        return codes.contiguous()
    if bits == 4 and codes.shape[-1] % 2 == 0:
        # Both codes of a byte at once, as the two bytes of a little-endian word.
        words = codes.contiguous().view(-1).view(torch.int16).view(*codes.shape[:-1], codes.shape[-1] // 2)
        return (words | words >> 4).to(torch.uint8)
    stream = _bits_of(codes, bits).flatten(-2)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[-1] % 8))
    return _bytes_of(stream.view(*stream.shape[:-1], -1, 8))


def unpack(packed: Tensor, bits: int, k: int) -> Tensor:
    """Bytes [..., packed_width(k, bits)] to codes uint8 [..., k]."""
    if bits == 8:
        return packed
    if bits == 4:
        # Both nibbles of a byte at once, as the two bytes of a little-endian word.
        words = packed.to(torch.int16)
        words |= words << 4
        words &= 0x0F0F
        return words.view(torch.uint8)[..., :k]
    stream = _bits_of(packed, 8).flatten(-2)[..., : k * bits]
    return _bytes_of(stream.reshape(*stream.shape[:-1], k, bits))


def lookup(packed: Tensor, bits: int, table: Tensor, k: int) -> Tensor:
    """The entries of a float32 table [<= 2^bits] that packed codes [..., packed_width(k, bits)] stand for: [..., k]."""
    if bits != 4:
        return table.index_select(0, unpack(packed, bits, k).flatten().int()).view(*packed.shape[:-1], k)
    # A byte holds two codes: look up both with one index, in a table of 256 pairs.
    full = torch.nn.functional.pad(table, (0, 16 - len(table)))
    pairs = torch.stack((full.repeat(16), full.repeat_interleave(16)), dim=-1).view(torch.int64).flatten()
    found = pairs.index_select(0, packed.flatten().int()).view(torch.float32)
    return found.view(*packed.shape[:-1], -1)[..., :k]


def _bits_of(values: Tensor, count: int) -> Tensor:
    places = torch.arange(count, dtype=torch.uint8)
    return (values.unsqueeze(-1) >> places) & 1


def _bytes_of(stream: Tensor) -> Tensor:
    places = torch.arange(stream.shape[-1], dtype=torch.uint8)
    return (stream << places).sum(-1, dtype=torch.uint8)
