"""AutoAWQ's layouts: 4-bit codes with a zero point and an fp16 scale per group, w = (q - z) s.

All pack eight nibbles into an int32 word, or four into an int16. Here K is in_features, N out_features, G = K / g.

GEMM        qweight int32 [K, N / 8], qzeros int32 [G, N / 8], scales [G, N]; nibble i of a word is column ORDER[i].
GEMV        qweight int32 [N, K / 8], qzeros int32 [N, Z], scales [N, 8 Z]; plain order; groups padded to 8 Z.
gemv_fast   qweight int16 [N / 4, K], scales [8 Z, N], and qzeros (or, in llm-awq, scaled_zeros) [8 Z, N], which hold
            -z s in floating point: w = q s + qzeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from woqfx import QTensor, Scheme, pack, registry, unpack
from woqfx_formats.words import fields, to_words, transposed

DTYPE = "int4_clip"
BITS = 4
PER_WORD = 8

#: In GEMM's words nibble i holds column ORDER[i]; column j is in nibble _NIBBLE_OF[j].
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
_NIBBLE_OF = [0, 4, 1, 5, 2, 6, 3, 7]


def decode_gemm(scheme: Scheme, parts: Mapping[str, Tensor], where: str) -> QTensor:
    """The weight of a GEMM layer."""
    codes = transposed(_columns(parts["qweight"]))
    return _weight(
        scheme,
        pack(codes, BITS),
        {"scales": transposed(parts["scales"]), "zeros": transposed(_columns(parts["qzeros"]))},
        where,
    )


def encode_gemm(weight: QTensor) -> dict[str, Tensor]:
    """The tensors of a GEMM layer: the inverse of `decode_gemm`."""
    assert isinstance(weight.scales, Tensor)
    zeros = weight.zeros
    if zeros is None:  # a symmetric weight
        zeros = torch.full(weight.scales.shape, 1 << (BITS - 1), dtype=torch.uint8)
    return {
        "qweight": _column_words(transposed(weight.unpacked())),
        "qzeros": _column_words(transposed(zeros)),
        "scales": transposed(weight.scales),
    }


def decode_gemv(scheme: Scheme, parts: Mapping[str, Tensor], where: str) -> QTensor:
    """The weight of a GEMV layer."""
    packed = parts["qweight"].view(torch.uint8)
    groups = scheme.group_count(packed.shape[1] * 2)
    zeros = fields(parts["qzeros"], BITS)[:, :groups].contiguous()
    return _weight(scheme, packed, {"scales": parts["scales"][:, :groups].contiguous(), "zeros": zeros}, where)


def decode_gemv_fast(scheme: Scheme, parts: Mapping[str, Tensor], where: str) -> QTensor:
    """The weight of a gemv_fast (llm-awq) layer. Its zeros are offsets: they were rounded after they were scaled."""
    quarter, k = parts["qweight"].shape
    groups = scheme.group_count(k)
    stored = unpack(parts["qweight"].contiguous().view(torch.uint8), BITS, 4 * k)
    # Four rows alternate in runs of 64 inputs; inside a run of 32 inputs come 4 x (4, 2) and then pairs of 8.
    codes = stored.view(quarter, k // 64, 4, 64).transpose(1, 2).reshape(4 * quarter, k // 8, 8)[..., _NIBBLE_OF]
    codes = codes.reshape(4 * quarter, k // 32, 4, 4, 2).transpose(2, 3).reshape(4 * quarter, k)
    return _weight(
        scheme,
        pack(codes, BITS),
        {
            "scales": transposed(parts["scales"][:groups]),
            "offsets": transposed(parts["qzeros"][:groups]),
        },
        where,
    )


def _weight(scheme: Scheme, packed: Tensor, params: dict[str, Tensor], where: str) -> QTensor:
    n, half = packed.shape
    return QTensor.from_tensors(registry().dtype(DTYPE), scheme, (n, 2 * half), {"codes": packed, **params}, name=where)


def _columns(words: Tensor) -> Tensor:
    """Words [R, N / 8] in GEMM's order to nibbles uint8 [R, N]."""
    return fields(words, BITS).view(len(words), -1, PER_WORD)[..., _NIBBLE_OF].reshape(len(words), -1)


def _column_words(values: Tensor) -> Tensor:
    """The inverse of `_columns`."""
    return to_words(values.view(len(values), -1, PER_WORD)[..., ORDER].reshape(len(values), -1), BITS)
