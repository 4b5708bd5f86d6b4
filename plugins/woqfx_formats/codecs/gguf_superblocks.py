"""GGML's blocks of 256 weights, the K-quants and IQ4_XS: read into groups of 16 or 32 whose scales are float32.

A super-block stores the scales of its groups, and their offsets, as small whole numbers times one or two fp16 numbers.
Their products are exact enough in float32 to give the bits of ggml's own dequantizer; a weight takes 1.5 to 2 bits more
than in the file. Layouts are those of `ggml-common.h` and of the `gguf` package, little endian.

    Q2_K   w = (d sc) q - dmin m          16 x 16      Q5_K    w = (d sc) q - dmin m          8 x 32
    Q3_K   w = d (sc - 32) (q - 4)        16 x 16      Q6_K    w = d sc (q - 32)             16 x 16
    Q4_K   w = (d sc) q - dmin m           8 x 32      IQ4_XS  w = d (sc - 32) table[q]       8 x 32
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from woqfx import GroupParams, QTensor, Scheme, registry

Array = NDArray[Any]
#: Codes [..., 256], scales [..., groups], and offsets of the same shape or None.
Unpacked = tuple[Array, Array, Array | None]

_D, _DMIN, _SCALES = ("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12)


@dataclass(frozen=True)
class SuperBlockType:
    """A GGML type of super-blocks in woqfx's terms."""

    name: str
    dtype: str
    group_size: int
    has_offset: bool
    layout: np.dtype[Any]
    unpack: Callable[[Array], Unpacked]

    @property
    def scheme(self) -> Scheme:
        """What a weight of this type is in woqfx."""
        return Scheme(self.dtype, self.group_size, symmetric=not self.has_offset, scale_dtype="fp32")


def decode(kind: SuperBlockType, data: Tensor, where: str) -> QTensor:
    """Bytes uint8 [..., N, B * size] of a tensor to a weight [..., N, B * 256]. Raises `CheckpointError`."""
    blocks = np.ascontiguousarray(data.numpy()).view(kind.layout)
    codes, scale, offset = (_joined(part) for part in kind.unpack(blocks))
    assert codes is not None and scale is not None
    weight = QTensor.build(registry().dtype(kind.dtype), kind.scheme, codes, GroupParams(scale, offset=offset))
    weight.check(where)
    return weight


def _joined(part: Array | None) -> Tensor | None:
    """[..., B, n] to [..., B * n]: super-blocks of a row stand side by side."""
    return None if part is None else torch.from_numpy(part.reshape(*part.shape[:-2], -1))


def _fields(data: Array, bits: int, run: int) -> Array:
    """Values of `bits` bits from bytes [..., B]: of each `run` bytes the lowest bits, then the next, and so on."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    values = data.reshape(*data.shape[:-1], -1, 1, run) >> shifts & np.uint8((1 << bits) - 1)
    return values.reshape(*data.shape[:-1], -1)


def _times(number: Array, factors: Array) -> Array:
    """An fp16 number of each super-block times whole numbers, in float32."""
    product: Array = number.astype(np.float32)[..., None] * factors.astype(np.float32)
    return product


def _six_bits(scales: Array) -> tuple[Array, Array]:
    """Scales and offsets of Q4_K and Q5_K: 6 bits each, the upper two of the last four apart."""
    low, high, rest = scales[..., :4], scales[..., 4:8], scales[..., 8:]
    scale = np.concatenate([low & 63, rest & 15 | low >> 2 & 48], axis=-1)
    offset = np.concatenate([high & 63, rest >> 4 | high >> 2 & 48], axis=-1)
    return scale, offset


def _q2_k(blocks: Array) -> Unpacked:
    scales = blocks["scales"]
    return _fields(blocks["qs"], 2, 32), _times(blocks["d"], scales & 15), -_times(blocks["dmin"], scales >> 4)


def _q3_k(blocks: Array) -> Unpacked:
    stored = blocks["scales"]
    scales = _fields(stored[..., :8], 4, 8) | _fields(stored[..., 8:], 2, 4) << 4
    codes = _fields(blocks["qs"], 2, 32) | _fields(blocks["hmask"], 1, 32) << 2
    return codes, _times(blocks["d"], scales.astype(np.int8) - 32), None


def _q4_k(blocks: Array) -> Unpacked:
    scale, offset = _six_bits(blocks["scales"])
    return _fields(blocks["qs"], 4, 32), _times(blocks["d"], scale), -_times(blocks["dmin"], offset)


def _q5_k(blocks: Array) -> Unpacked:
    _, scale, offset = _q4_k(blocks)
    return _fields(blocks["qs"], 4, 32) | _fields(blocks["qh"], 1, 32) << 4, scale, offset


def _q6_k(blocks: Array) -> Unpacked:
    codes = _fields(blocks["ql"], 4, 64) | _fields(blocks["qh"], 2, 32) << 4
    return codes, _times(blocks["d"], blocks["scales"]), None


def _iq4_xs(blocks: Array) -> Unpacked:
    high = blocks["scales_h"][..., None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = _fields(blocks["scales_l"], 4, 1) | high.astype(np.uint8) << 4
    return _fields(blocks["qs"], 4, 16), _times(blocks["d"], scales.astype(np.int8) - 32), None


_ALL = (
    ("Q2_K", "int2", 16, True, [("scales", "u1", 16), ("qs", "u1", 64), _D, _DMIN], _q2_k),
    ("Q3_K", "int3", 16, False, [("hmask", "u1", 32), ("qs", "u1", 64), _SCALES, _D], _q3_k),
    ("Q4_K", "int4_clip", 32, True, [_D, _DMIN, _SCALES, ("qs", "u1", 128)], _q4_k),
    ("Q5_K", "int5", 32, True, [_D, _DMIN, _SCALES, ("qh", "u1", 32), ("qs", "u1", 128)], _q5_k),
    ("Q6_K", "int6", 16, False, [("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), _D], _q6_k),
    ("IQ4_XS", "iq4_nl", 32, False, [_D, ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)], _iq4_xs),
)
SUPER_BLOCK_TYPES: Mapping[str, SuperBlockType] = {
    name: SuperBlockType(name, dtype, group_size, offset, np.dtype(fields), unpack)
    for name, dtype, group_size, offset, fields, unpack in _ALL
}
