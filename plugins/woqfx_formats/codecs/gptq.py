"""GPTQ's layout (AutoGPTQ, GPTQModel, auto-round, ITREX): integers of 2, 3, 4 or 8 bits, w = (q - z) s.

With K in_features, N out_features, G groups and b bits, words hold their fields lowest bits first, also across words:

    qweight  int32 [K b / 32, N]    packed along K, inputs in their own order
    qzeros   int32 [G, N b / 32]    packed along N
    scales   [G, N]
    g_idx    int32 [K]              the group of each input; without it, input k is of group k // g

Version 1 ("gptq") stores each zero point less one, in its own field: 0 becomes 2^b - 1. Version 2 ("gptq_v2") stores it
as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from woqfx import QTensor, Scheme, pack, registry, unpack
from woqfx.errors import CheckpointError
from woqfx_formats.words import fields, from_transposed_bytes, to_words, transposed, transposed_bytes

#: Our dtypes by their number of bits.
DTYPES = {2: "int2", 3: "int3", 4: "int4_clip", 5: "int5", 6: "int6", 7: "int7", 8: "int8"}
#: Those of AutoGPTQ and GPTQModel; auto-round packs the others alike.
COMMON_BITS = (2, 3, 4, 8)


def decode(scheme: Scheme, minus_one: bool, ordered: bool, parts: Mapping[str, Tensor], where: str) -> QTensor:
    """The weight of a layer; `minus_one` for version 1, `ordered` if inputs are permuted. Raises `CheckpointError`."""
    dtype = registry().dtype(scheme.dtype)
    packed = transposed_bytes(parts["qweight"])
    n, k = len(packed), packed.shape[1] * 8 // dtype.bits
    params = {"codes": packed, "scales": transposed(parts["scales"])}
    if not scheme.symmetric:
        params["zeros"] = transposed(zero_points(parts["qzeros"], dtype.bits, minus_one))
    if ordered:
        order = order_of(parts["g_idx"], scheme.group_width(k), where)
        params["order"] = order
        params["codes"] = pack(unpack(packed, dtype.bits, k)[:, order.long()], dtype.bits)
    return QTensor.from_tensors(dtype, scheme, (n, k), params, name=where)


def encode(weight: QTensor, minus_one: bool) -> dict[str, Tensor]:
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
    stored = (zeros.to(torch.int16) - int(minus_one)) & ((1 << bits) - 1)
    return {
        "qweight": from_transposed_bytes(codes),
        "qzeros": to_words(transposed(stored.to(torch.uint8)), bits),
        "scales": transposed(weight.scales),
        "g_idx": groups,
    }


def zero_points(words: Tensor, bits: int, minus_one: bool) -> Tensor:
    """The zero points uint8 [G, N] in `qzeros`.

    Each field is decoded for itself. To add 1 in every field of a word at once, as others do, carries from a field that
    is full into the next.
    """
    stored = fields(words, bits)
    return stored if not minus_one else (stored + 1) & ((1 << bits) - 1)


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
