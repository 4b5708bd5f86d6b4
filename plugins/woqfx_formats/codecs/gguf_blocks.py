"""GGML's blocks of 32 weights: what woqfx holds as it is, and how its bytes lie.

The layouts are those of ggml (`ggml-common.h`) and of the `gguf` package: little endian, scale first. The codes of
elements j and j + 16 share byte j, the former in the low nibble; bit i of `qh` is the fifth bit of element i.

    Q8_0     w = d q            d fp16, q int8
    Q4_0     w = d (q - 8)      d fp16, q 4 bits            Q5_0    w = d (q - 16)     d fp16, q 5 bits
    Q4_1     w = d q + m        d, m fp16, q 4 bits         Q5_1    w = d q + m        d, m fp16, q 5 bits
    IQ4_NL   w = d table[q]     d fp16, q 4 bits            MXFP4   w = 2^(e-127) e2m1[q]   e uint8, q 4 bits
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from woqfx import GroupParams, QTensor, Scheme, registry
from woqfx.errors import CheckpointError

#: Weights in a block, along K.
BLOCK = 32

_SCALE = ("d", "<f2")
_OFFSET = ("m", "<f2")
_HIGH = ("qh", "<u4")
_NIBBLES = ("qs", "u1", 16)


@dataclass(frozen=True)
class BlockType:
    """A GGML type in woqfx's terms: its dtype, and the fields of a block as numpy describes them."""

    name: str
    dtype: str
    fields: tuple[tuple[Any, ...], ...]
    scale_dtype: str = "fp16"

    @property
    def layout(self) -> np.dtype[Any]:
        """A block as a numpy type, without padding."""
        return np.dtype(list(self.fields))

    @property
    def nbytes(self) -> int:
        """Bytes of a block."""
        return self.layout.itemsize

    @property
    def has_offset(self) -> bool:
        """Whether its groups have an offset in floating point."""
        return _OFFSET in self.fields

    @property
    def scheme(self) -> Scheme:
        """What a weight of this type is in woqfx."""
        return Scheme(self.dtype, BLOCK, symmetric=not self.has_offset, scale_dtype=self.scale_dtype)


_ALL = (
    BlockType("Q8_0", "int8", (_SCALE, ("qs", "i1", 32))),
    BlockType("Q4_0", "int4_fullrange", (_SCALE, _NIBBLES)),
    BlockType("Q4_1", "int4_clip", (_SCALE, _OFFSET, _NIBBLES)),
    BlockType("Q5_0", "int5", (_SCALE, _HIGH, _NIBBLES)),
    BlockType("Q5_1", "int5", (_SCALE, _OFFSET, _HIGH, _NIBBLES)),
    BlockType("IQ4_NL", "iq4_nl", (_SCALE, _NIBBLES)),
    BlockType("MXFP4", "fp4_e2m1", (("e", "u1"), _NIBBLES), "bf16"),  # bf16 holds every power of two that e stands for
)
BLOCK_TYPES: Mapping[str, BlockType] = {one.name: one for one in _ALL}


def decode(kind: BlockType, data: Tensor, where: str) -> QTensor:
    """Bytes uint8 [..., N, G * nbytes] of a tensor to a weight [..., N, G * 32]. Raises `CheckpointError`."""
    blocks = np.ascontiguousarray(data.numpy()).view(kind.layout)
    scale, offset = _scales(kind, blocks, where), None
    if kind.has_offset:
        offset = torch.from_numpy(blocks["m"].astype(np.float32))
    codes = torch.from_numpy(_codes(kind, blocks).reshape(*blocks.shape[:-1], -1))
    weight = QTensor.build(registry().dtype(kind.dtype), kind.scheme, codes, GroupParams(scale, offset=offset))
    weight.check(where)
    return weight


def _scales(kind: BlockType, blocks: NDArray[Any], where: str) -> Tensor:
    if "d" in kind.layout.fields:  # type: ignore[operator]
        return torch.from_numpy(blocks["d"].astype(np.float32))
    if bool((blocks["e"] == 255).any()):
        raise CheckpointError(f"{where}: a block's exponent is 255, which is no number; the file is damaged")
    return torch.from_numpy(np.ldexp(np.float32(1), blocks["e"].astype(np.int32) - 127))


def _codes(kind: BlockType, blocks: NDArray[Any]) -> NDArray[np.uint8]:
    """Unsigned codes [..., G, 32]."""
    stored = blocks["qs"]
    if kind.dtype == "int8":
        return np.ascontiguousarray(stored).view(np.uint8) ^ np.uint8(0x80)
    codes = np.concatenate([stored & 15, stored >> 4], axis=-1)
    if _HIGH in kind.fields:
        codes |= (blocks["qh"][..., None] >> np.arange(BLOCK, dtype=np.uint32) & 1).astype(np.uint8) << 4
    return codes


def encode(kind: BlockType, weight: QTensor, where: str) -> Tensor:
    """A weight [..., N, K] whose grid is part of that of `kind` to bytes uint8 [..., N, K / 32 * nbytes].

    Symmetric integers may have fewer bits, groups may be longer than 32: codes are shifted, scales repeated. Raises
    `CheckpointError` if a scale or an offset is not one that the type's 16 or 8 bits hold.
    """
    params = weight.params()
    *lead, k = weight.shape
    count = k // BLOCK
    blocks = np.empty((*lead, count), kind.layout)
    repeats = count // params.scale.shape[-1]
    scale = params.scale.repeat_interleave(repeats, dim=-1).numpy()
    codes = weight.unpacked().numpy().reshape(*lead, count, BLOCK)
    grid = registry().dtype(kind.dtype)
    if weight.dtype.bits < grid.bits and not kind.has_offset:
        codes = codes + np.uint8((1 << grid.bits - 1) - (1 << weight.dtype.bits - 1))
    if "e" in kind.layout.fields:  # type: ignore[operator]
        blocks["e"] = _exponents(scale, where)
    else:
        blocks["d"] = _halves(scale, "scale", where)
    if kind.has_offset:
        assert params.offset is not None
        blocks["m"] = _halves(params.offset.repeat_interleave(repeats, dim=-1).numpy(), "offset", where)
    if kind.dtype == "int8":
        blocks["qs"] = (codes ^ np.uint8(0x80)).view(np.int8)
    else:
        blocks["qs"] = (codes[..., :16] & 15) | (codes[..., 16:] & 15) << 4
    if _HIGH in kind.fields:
        blocks["qh"] = ((codes >> 4).astype(np.uint32) << np.arange(BLOCK, dtype=np.uint32)).sum(-1, dtype=np.uint32)
    return torch.from_numpy(blocks.view(np.uint8).reshape(*lead, count * kind.nbytes))


def _halves(values: NDArray[np.float32], what: str, where: str) -> NDArray[np.float16]:
    halves: NDArray[np.float16] = values.astype(np.float16)
    if not np.array_equal(halves.astype(np.float32), values):
        raise CheckpointError(f"{where}: its {what}s are not fp16 numbers, which is what GGUF stores; use --requantize")
    return halves


def _exponents(scale: NDArray[np.float32], where: str) -> NDArray[np.uint8]:
    mantissa, exponent = np.frexp(scale)  # scale = mantissa * 2^exponent, mantissa 0.5 for powers of two
    biased = exponent + 126
    if not bool(((mantissa == 0.5) & (biased >= 0) & (biased < 255)).all()):
        raise CheckpointError(f"{where}: its scales are not powers of two, as MXFP4 stores them; use --requantize")
    return biased.astype(np.uint8)
