"""GPTQ's layout (AutoGPTQ, GPTQModel, auto-round, ITREX): integers of 2, 3, 4 or 8 bits, w = (q - z) s.

With K in_features, N out_features, G groups and b bits, words hold their fields lowest bits first, also across words:

    qweight  int32 [K b / 32, N]    packed along K, inputs in their own order
    qzeros   int32 [G, N b / 32]    packed along N
    scales   [G, N]
    g_idx    int32 [K]              the group of each input; without it, input k is of group k // g

Version 1 ("gptq") stores each zero point less one, version 2 ("gptq_v2") as it is; see `ZeroPoints`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import torch
from torch import Tensor

from woqfx import QTensor, Scheme, pack, registry, unpack
from woqfx.errors import CheckpointError
from woqfx_formats.words import fields, from_transposed_bytes, to_words, transposed, transposed_bytes

#: Our dtypes by their number of bits.
DTYPES = {2: "int2", 3: "int3", 4: "int4_clip", 5: "int5", 6: "int6", 7: "int7", 8: "int8"}
#: Those of AutoGPTQ and GPTQModel; auto-round packs the others alike.
COMMON_BITS = (2, 3, 4, 8)
#: Widths of which a word holds a whole number of fields.
_WHOLE = (2, 4, 8)


class ZeroPoints(Enum):
    """How `qzeros` holds zero points."""

    PLAIN = "as they are"
    LESS_ONE = "less one, each in its own field: 0 becomes 2^b - 1"
    #: GPTQModel subtracts from words of 2, 4 or 8 bits as from one number: behind a 0, the next field gets one less.
    LESS_ONE_BY_WORDS = "less one, with a borrow from the next field for 0"


def decode(scheme: Scheme, stored: ZeroPoints, ordered: bool, parts: Mapping[str, Tensor], where: str) -> QTensor:
    """The weight of a layer; `ordered` if inputs are permuted. Raises `CheckpointError`."""
    dtype = registry().dtype(scheme.dtype)
    packed = transposed_bytes(parts["qweight"])
    n, k = len(packed), packed.shape[1] * 8 // dtype.bits
    params = {"codes": packed, "scales": transposed(parts["scales"])}
    if not scheme.symmetric:
        params["zeros"] = transposed(zero_points(parts["qzeros"], dtype.bits, stored))
    if ordered:
        order = order_of(parts["g_idx"], scheme.group_width(k), where)
        params["order"] = order
        params["codes"] = pack(unpack(packed, dtype.bits, k)[:, order.long()], dtype.bits)
    return QTensor.from_tensors(dtype, scheme, (n, k), params, name=where)


def encode(weight: QTensor, stored: ZeroPoints) -> dict[str, Tensor]:
    """The tensors of a layer: the inverse of `decode`."""
    assert isinstance(weight.scales, Tensor)
    bits, k = weight.dtype.bits, weight.in_features
    width = weight.scheme.group_width(k)
    codes, groups = weight.codes, torch.arange(k, dtype=torch.int32) // width
    if weight.order is not None:
        order = weight.order.long()
        unpacked, g_idx = torch.empty(weight.shape, dtype=torch.uint8), torch.empty_like(groups)
        unpacked[:, order] = weight.unpacked()
        g_idx[order] = groups
        codes, groups = pack(unpacked, bits), g_idx
    zeros = weight.zeros
    if zeros is None:  # a symmetric weight
        zeros = torch.full(weight.scales.shape, 1 << (bits - 1), dtype=torch.uint8)
    return {
        "qweight": from_transposed_bytes(codes),
        "qzeros": zero_words(transposed(zeros), bits, stored),
        "scales": transposed(weight.scales),
        "g_idx": groups,
    }


def zero_points(words: Tensor, bits: int, stored: ZeroPoints) -> Tensor:
    """The zero points uint8 [G, N] in `qzeros`, int32 [G, N b / 32]."""
    if stored is ZeroPoints.LESS_ONE_BY_WORDS and bits in _WHOLE:
        return fields(words + _ones(bits), bits)
    found = fields(words, bits)
    return found if stored is ZeroPoints.PLAIN else (found + 1) & ((1 << bits) - 1)


def zero_words(zeros: Tensor, bits: int, stored: ZeroPoints) -> Tensor:
    """The inverse of `zero_points`."""
    if stored is ZeroPoints.LESS_ONE_BY_WORDS and bits in _WHOLE:
        return to_words(zeros, bits) - _ones(bits)
    return to_words(zeros if stored is ZeroPoints.PLAIN else (zeros - 1) & ((1 << bits) - 1), bits)


def _ones(bits: int) -> Tensor:
    """A word with 1 in each field. Sums of int32 wrap around, as is needed here."""
    return torch.tensor(sum(1 << at for at in range(0, 32, bits)), dtype=torch.int32)


def is_plain(g_idx: Tensor, width: int) -> bool:
    """Whether inputs are in their own order: input k of group k // width."""
    return torch.equal(g_idx.long(), torch.arange(len(g_idx)) // width)


def order_of(g_idx: Tensor, width: int, where: str) -> Tensor:
    """The inputs sorted by group, int32 [K]: those of one group as they come. Raises `CheckpointError`."""
    order = torch.argsort(g_idx, stable=True)
    if not is_plain(g_idx[order], width):
        raise CheckpointError(
            f"{where}: g_idx does not share {len(g_idx)} inputs out to groups of {width} (the last may be shorter)"
        )
    return order.to(torch.int32)
