"""Bit fields in 32-bit words, as GPTQ, AWQ and compressed-tensors store codes: the lowest bits first.

On a little-endian machine the bytes of such words are woqfx's own packing (`woqfx.pack`), whatever the number of bits:
a field may reach from one word into the next.
"""

from __future__ import annotations

import torch
from torch import Tensor

from woqfx import pack, unpack

_WORD = 32


def fields(words: Tensor, bits: int) -> Tensor:
    """The fields of int32 words [..., W]: uint8 [..., 32 W / bits]."""
    return unpack(words.contiguous().view(torch.uint8), bits, words.shape[-1] * _WORD // bits)


def to_words(values: Tensor, bits: int) -> Tensor:
    """The inverse of `fields`: uint8 [..., n] below 2^bits, n bits a multiple of 32, to int32 [..., n bits / 32]."""
    return pack(values, bits).view(torch.int32)


def transposed(matrix: Tensor) -> Tensor:
    """A matrix with rows for columns, in memory of its own.

    `matrix.T.contiguous()` is not enough: it leaves odd strides to dimensions of size 1, which cannot be seen as words.
    """
    return matrix.T.clone(memory_format=torch.contiguous_format)


def transposed_bytes(words: Tensor) -> Tensor:
    """Words [W, N], packed along the first dimension, as bytes of each column: uint8 [N, 4 W]."""
    return transposed(words).view(torch.uint8)


def from_transposed_bytes(packed: Tensor) -> Tensor:
    """The inverse of `transposed_bytes`: uint8 [N, 4 W] to int32 [W, N]."""
    return transposed(packed.contiguous().view(torch.int32))
