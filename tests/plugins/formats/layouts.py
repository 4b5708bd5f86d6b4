"""Layouts of other programs, written from their descriptions in plain numpy: the other side of the tests.

Nothing here comes from the code that is tested. Codes are [N, K], zeros and scales [N, G].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: In a word of AWQ's GEMM layout, bits 4i to 4i + 3 hold column AWQ_ORDER[i].
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def words_along(values: Array, bits: int, axis: int) -> Array:
    """Fields of `bits` bits, lowest first, in 32-bit words along an axis, as one stream of bits."""
    rows = np.moveaxis(values, axis, -1).astype(np.uint64)
    count = rows.shape[-1] * bits // 32
    stream = np.zeros((*rows.shape[:-1], rows.shape[-1] * bits), np.uint8)
    for bit in range(bits):
        stream[..., bit::bits] = (rows >> np.uint64(bit)) & np.uint64(1)
    words = np.zeros((*rows.shape[:-1], count), np.uint64)
    for bit in range(32):
        words |= stream[..., bit::32].astype(np.uint64) << np.uint64(bit)
    return np.moveaxis(words.astype(np.uint32).view(np.int32), -1, axis)


def awq_columns(values: Array) -> Array:
    """[R, C] to int32 [R, C / 8] in the order of AWQ's GEMM."""
    words = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
    for place, column in enumerate(AWQ_ORDER):
        words |= values[:, column::8].astype(np.uint32) << np.uint32(4 * place)
    return words.view(np.int32)


def awq_gemm(codes: Array, zeros: Array, scales: Array) -> dict[str, Array]:
    """The tensors of AutoAWQ's WQLinear_GEMM."""
    return {
        "qweight": awq_columns(codes.T),
        "qzeros": awq_columns(zeros.T),
        "scales": np.ascontiguousarray(scales.T.astype(np.float16)),
    }


def zeros_width(groups: int, group_size: int) -> int:
    """How many words of zeros AutoAWQ's GEMV has for so many groups."""
    multiple = {32: 4, 64: 2}.get(group_size, 1)
    words = -(-groups // 8)
    return -(-words // multiple) * multiple


def awq_gemv(codes: Array, zeros: Array, scales: Array, group_size: int) -> dict[str, Array]:
    """The tensors of AutoAWQ's WQLinear_GEMV."""
    n, groups = zeros.shape
    width = 8 * zeros_width(groups, group_size)
    padded_zeros, padded_scales = np.zeros((n, width), np.uint8), np.zeros((n, width), np.float16)
    padded_zeros[:, :groups], padded_scales[:, :groups] = zeros, scales
    return {
        "qweight": words_along(codes, 4, 1),
        "qzeros": words_along(padded_zeros, 4, 1),
        "scales": padded_scales,
    }


def awq_gemv_fast(codes: Array, zeros: Array, scales: Array, group_size: int) -> dict[str, Array]:
    """The tensors of WQLinear_GEMVFast, which are llm-awq's: where each nibble goes is computed one by one."""
    n, k = codes.shape
    out = np.zeros((n // 4, k), np.uint16)
    for row in range(n):
        for column in range(k):
            run, inside = divmod(column, 32)
            # 32 columns as (4, 4, 2) turned to (1, 0, 2); of these, eight at a time are put in AWQ_ORDER.
            a, b, c = inside // 8, inside % 8 // 2, inside % 2
            turned = b * 8 + a * 2 + c
            place = run * 32 + turned // 8 * 8 + AWQ_ORDER.index(turned % 8)
            # Four rows alternate in runs of 64.
            flat = place // 64 * 256 + row % 4 * 64 + place % 64
            out[row // 4, flat // 4] |= np.uint16(codes[row, column]) << np.uint16(4 * (flat % 4))
    groups = zeros.shape[1]
    width = 8 * zeros_width(groups, group_size)
    padded_scales, scaled = np.zeros((width, n), np.float16), np.zeros((width, n), np.float16)
    padded_scales[:groups] = scales.T
    scaled[:groups] = -(scales.astype(np.float32) * zeros).astype(np.float16).T
    return {"qweight": out.view(np.int16), "scales": padded_scales, "qzeros": scaled}


def gptq(
    codes: Array,
    zeros: Array,
    scales: Array,
    bits: int,
    *,
    g_idx: Array | None = None,
    minus_one: bool = True,
    by_words: bool = False,
) -> dict[str, Array]:
    """The tensors of a GPTQ layer; `minus_one` is v1, which stores each zero point less one, in its own field.

    With `by_words` it is taken from whole words, as GPTQModel does it: 0x11111111 from eight fields of 4 bits.
    """
    stored = (zeros.astype(np.int64) - 1) % (1 << bits) if minus_one and not by_words else zeros
    borrowed = int("1".rjust(bits, "0") * (32 // bits), 2) if by_words else 0
    tensors = {
        "qweight": np.ascontiguousarray(words_along(codes, bits, 1).T),
        "qzeros": (words_along(np.ascontiguousarray(stored.T), bits, 1).view(np.uint32) - np.uint32(borrowed)).view(
            "i4"
        ),
        "scales": np.ascontiguousarray(scales.T.astype(np.float16)),
    }
    return tensors if g_idx is None else tensors | {"g_idx": g_idx.astype(np.int32)}


def weight_of(codes: Array, zeros: Array, scales: Array, groups: Array) -> Array:
    """The weight that these stand for, float32 [N, K]: w = (q - z) s, with the group of each input in `groups`."""
    steps = codes.astype(np.float32) - zeros.astype(np.float32)[:, groups]
    return steps * scales.astype(np.float16).astype(np.float32)[:, groups]
