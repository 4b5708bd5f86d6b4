"""bitsandbytes' 4-bit weights (QLoRA, arXiv 2305.14314): nf4 and fp4, scales plain or themselves in 8 bits.

For a parameter `p` the file holds `p`, the codes of the flattened weight, two to a byte, the high nibble first, in
bytes or seen as some other type; `p.absmax`, one scale per `blocksize` consecutive weights; `p.quant_map`, the 16
levels; and `p.quant_state.bitsandbytes__nf4` (or `__fp4`), a JSON object in bytes. Nested scales are uint8 codes of the
signed dynamic map: absmax[i] = nested_quant_map[code[i]] * nested_absmax[i // nested_blocksize] + nested_offset.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from woqfx import QTensor, ScaleCodes, Scheme, dynamic_map, pack, registry, unpack
from woqfx.errors import CheckpointError

#: Our dtypes by bitsandbytes' `quant_type`.
DTYPES = {"nf4": "nf4", "fp4": "fp4_bnb"}
#: What its kernels take.
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
#: Scales that share a range when nested.
NESTED_BLOCK = 256
STATE = "quant_state.bitsandbytes__"
#: Bytes; of the JSON object, which has some hundred.
MAX_STATE = 1 << 16

_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class QuantState:
    """What the JSON object says of one weight of shape [N, K]."""

    quant_type: str
    blocksize: int
    float_dtype: torch.dtype
    shape: tuple[int, int]
    nested_blocksize: int | None
    nested_offset: float

    @classmethod
    def parse(cls, data: bytes, where: str) -> QuantState:
        """Read it. Raises `CheckpointError`."""
        try:
            found = json.loads(data)
            quant_type, dtype = found["quant_type"], found["dtype"]
            blocksize, shape = found["blocksize"], found["shape"]
            nested, offset = found.get("nested_blocksize"), found.get("nested_offset", 0.0)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{where} does not describe a weight ({type(error).__name__}: {error}); fetch the file again"
            ) from None
        if not isinstance(quant_type, str) or quant_type not in DTYPES:
            raise CheckpointError(f"{where}: quant_type {quant_type!r:.80} is not one of {', '.join(DTYPES)}")
        if not isinstance(dtype, str) or dtype not in _FLOATS:
            raise CheckpointError(f"{where}: dtype {dtype!r:.80} is not one of {', '.join(_FLOATS)}")
        if not isinstance(shape, list) or len(shape) != 2 or not all(_is_count(size) for size in shape):
            raise CheckpointError(f"{where}: shape {shape!r:.80} is not that of a matrix")
        if not _is_count(blocksize) or (nested is not None and not _is_count(nested)):
            raise CheckpointError(f"{where}: block sizes {blocksize!r:.40}, {nested!r:.40} are not positive integers")
        if not isinstance(offset, int | float) or not abs(offset) < float(torch.finfo(torch.float32).max):
            raise CheckpointError(f"{where}: nested_offset {offset!r:.80} is not a float32 number")
        return cls(quant_type, blocksize, _FLOATS[dtype], (shape[0], shape[1]), nested, float(offset))

    @property
    def group_size(self) -> int:
        """The longest groups along K that lie within one block each: blocks run on over the ends of rows."""
        return math.gcd(self.shape[1], self.blocksize)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-prod(self.shape) // self.blocksize)

    def parts(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """The tensors that must stand beside the codes: type and shape by suffix."""
        parts: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"quant_map": (torch.float32, (16,))}
        if self.nested_blocksize is None:
            return parts | {"absmax": (torch.float32, (self.blocks,))}
        return parts | {
            "absmax": (torch.uint8, (self.blocks,)),
            "nested_absmax": (torch.float32, (-(-self.blocks // self.nested_blocksize),)),
            "nested_quant_map": (torch.float32, (256,)),
        }

    def scheme(self, nested_map: Tensor | None) -> Scheme:
        """What the weight is in woqfx. Nested scales stay so if they are ours: one to a group, in our map."""
        ours = (
            self.nested_blocksize == NESTED_BLOCK
            and self.shape[1] % self.blocksize == 0
            and nested_map is not None
            and torch.equal(nested_map, dynamic_map())
        )
        return Scheme(DTYPES[self.quant_type], self.group_size, scale_dtype="fp32", double_quant=ours)


def decode(state: QuantState, scheme: Scheme, parts: Mapping[str, Tensor], where: str) -> QTensor:
    """The weight of `scheme` from the codes (`""`) and what stands beside them. Raises `CheckpointError`."""
    dtype = registry().dtype(scheme.dtype)
    assert dtype.levels is not None
    if not torch.equal(parts["quant_map"], dtype.levels):
        raise CheckpointError(
            f"{where}: its quant_map is not bitsandbytes' table of {state.quant_type}; the file is damaged, or was "
            "made by a version with another table: load it there and save the dense weights"
        )
    n, k = state.shape
    codes = parts[""].view(torch.uint8).flatten()
    codes = codes >> 4 | codes << 4
    # Rows of odd length begin within bytes.
    packed = pack(unpack(codes, 4, n * k).view(n, k), 4) if k % 2 else codes.view(n, k // 2)
    weight = QTensor(dtype, scheme, (n, k), packed, _scales(state, scheme, parts))
    weight.check(where)
    return weight


def _scales(state: QuantState, scheme: Scheme, parts: Mapping[str, Tensor]) -> Tensor | ScaleCodes:
    n, k = state.shape
    scales = parts["absmax"]
    if state.nested_blocksize is not None:
        offset = torch.tensor(state.nested_offset, dtype=torch.float32)
        if scheme.double_quant:
            return ScaleCodes(scales.view(n, -1), parts["nested_absmax"], offset)
        ranges = parts["nested_absmax"].repeat_interleave(state.nested_blocksize)[: state.blocks]
        scales = parts["nested_quant_map"][scales.int()] * ranges + offset
    if k % state.blocksize == 0:
        return scales.view(n, -1)
    first = torch.arange(0, n * k, scheme.group_width(k))  # each group's first weight, in the flattened matrix
    return scales[first // state.blocksize].view(n, -1)


def encode(weight: QTensor) -> dict[str, Tensor]:
    """The codes (`""`) and what stands beside them but the JSON object, for a weight [N, K] in whole blocks."""
    levels = weight.dtype.levels
    assert levels is not None
    codes = weight.codes.flatten()
    parts = {"": (codes >> 4 | codes << 4).view(-1, 1), "quant_map": levels.clone()}
    if isinstance(weight.scales, ScaleCodes):
        nested = {"nested_absmax": weight.scales.ranges, "nested_quant_map": dynamic_map().clone()}
        return parts | {"absmax": weight.scales.codes.flatten()} | nested
    return parts | {"absmax": weight.scales.to(torch.float32).flatten()}


def encode_state(weight: QTensor, float_dtype: torch.dtype) -> dict[str, Tensor]:
    """The JSON object of a weight, as bitsandbytes spells it, by its suffix."""
    n, k = weight.shape
    quant_type = next(theirs for theirs, ours in DTYPES.items() if ours == weight.dtype.name)
    state: dict[str, Any] = {
        "quant_type": quant_type,
        "blocksize": weight.scheme.group_width(k),
        "dtype": str(float_dtype).removeprefix("torch."),
        "shape": [n, k],
    }
    if isinstance(weight.scales, ScaleCodes):
        nested = {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32"}
        state |= nested | {"nested_offset": weight.scales.offset.item()}
    text = bytearray(json.dumps(state).encode())
    return {STATE + quant_type: torch.frombuffer(text, dtype=torch.uint8)}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 40
