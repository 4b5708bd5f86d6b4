"""compressed-tensors' integer weights: `pack-quantized` (2 to 8 bits in int32 words) and `int-quantized` (int8).

For a module `m` the file holds `m.weight_packed` int32 [N, words] and `m.weight_shape`, or `m.weight` int8 [N, K];
`m.weight_scale` [N, G], [N, 1] or one for all; and, if asymmetric, `m.weight_zero_point`. Values are signed,
w = (q - z) scale, and packed as q + 2^(bits-1), lowest bits first. Words are packed along K, zero points along N, with
no bit between two values. Before compressed-tensors 0.15.1 a word held 32 // bits whole values: the width tells which.
`m.weight_g_idx` int32 [K] of older files gives the group of each input (GPTQ's act-order).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from woqfx import GroupParams, QTensor, Scheme, pack, packed_width, registry, unpack
from woqfx.errors import CheckpointError
from woqfx_formats.settings import SCALE_DTYPES

#: Our dtypes by their number of bits.
DTYPES = {2: "int2", 3: "int3", 4: "int4_clip", 5: "int5", 6: "int6", 7: "int7", 8: "int8"}

_WORD = 32


@dataclass(frozen=True)
class IntegerLayout:
    """How the groups of one weight [N, K] lie: `group_size` -1 for one per row, `block_rows` rows share scales."""

    bits: int
    symmetric: bool
    group_size: int
    scale_dtype: torch.dtype
    block_rows: int = 1

    @property
    def scheme(self) -> Scheme:
        """What the weight is in woqfx."""
        dtype, scales = DTYPES[self.bits], SCALE_DTYPES[self.scale_dtype]
        return Scheme(dtype, self.group_size, symmetric=self.symmetric, scale_dtype=scales)


def word_counts(count: int, bits: int) -> tuple[int, int]:
    """The int32 words that `count` values take: without gaps, and in words of whole values."""
    return -(-count * bits // _WORD), -(-count // (_WORD // bits))


def decode(
    layout: IntegerLayout, scheme: Scheme, shape: tuple[int, int], parts: Mapping[str, Tensor], where: str
) -> QTensor:
    """The weight [N, K] from its tensors by name (`weight_packed` or `weight`, ...). Raises `CheckpointError`."""
    (n, k), bits = shape, layout.bits
    if "weight_packed" in parts:
        codes = _codes(parts["weight_packed"], bits, k)
    else:
        codes = _offset_codes(parts["weight"], bits, where)
    scale = _spread(parts["weight_scale"], layout, n)
    zero = None
    if not layout.symmetric:
        zero = _spread(_zeros(parts["weight_zero_point"], layout, n, where), layout, n).to(torch.float32)
    order = None
    if "weight_g_idx" in parts:
        order = _order(parts["weight_g_idx"], scheme, k, where)
        codes = codes[:, order.long()]
    params = GroupParams(scale.to(torch.float32), zero)
    weight = QTensor.build(registry().dtype(scheme.dtype), scheme, codes, params, order)
    weight.check(where)
    return weight


def encode(weight: QTensor) -> dict[str, Tensor]:
    """The tensors of a weight [N, K] of an integer grid, by name; `weight_scale` in the type that stores the scales."""
    n, k = weight.shape
    bits = weight.dtype.bits
    scales = weight.scales if isinstance(weight.scales, Tensor) else weight.scales.expand()
    parts = {
        "weight_packed": _words(weight.codes, word_counts(k, bits)[0]),
        "weight_scale": scales,
        "weight_shape": torch.tensor([n, k]),
    }
    if weight.zeros is not None:
        rows = pack(weight.zeros.T.contiguous(), bits)
        parts |= {"weight_zero_point": _words(rows, word_counts(n, bits)[0]).T.contiguous()}
    return parts


def _words(packed: Tensor, count: int) -> Tensor:
    """Bytes [R, B] as int32 words [R, count], zeros behind."""
    return torch.nn.functional.pad(packed, (0, 4 * count - packed.shape[-1])).view(torch.int32)


def _codes(words: Tensor, bits: int, count: int) -> Tensor:
    """Unsigned codes [R, count] of words [R, words]; both packings."""
    if words.shape[-1] == word_counts(count, bits)[0]:
        stream = words.contiguous().view(torch.uint8)
        return unpack(stream[:, : packed_width(count, bits)], bits, count)
    places = torch.arange(_WORD // bits, dtype=torch.int32) * bits
    fields = (words.unsqueeze(-1) >> places) & (1 << bits) - 1
    return fields.flatten(1)[:, :count].to(torch.uint8)


def _offset_codes(values: Tensor, bits: int, where: str) -> Tensor:
    """Unsigned codes of signed values, which must be within the range of `bits` bits."""
    middle = 1 << bits - 1
    if bits < 8 and values.numel() and (int(values.min()) < -middle or int(values.max()) >= middle):
        raise CheckpointError(f"{where}: a value is outside the range of {bits} bits; the file is damaged")
    return (values.to(torch.int16) + middle).to(torch.uint8)


def _zeros(stored: Tensor, layout: IntegerLayout, n: int, where: str) -> Tensor:
    """Zero points as unsigned codes, in the shape of the stored scales."""
    if stored.dtype == torch.int32:
        return _codes(stored.T, layout.bits, n).T.contiguous()
    return _offset_codes(stored, layout.bits, f"{where}.weight_zero_point")


def _spread(values: Tensor, layout: IntegerLayout, n: int) -> Tensor:
    """One value for each row and group: [N, G]."""
    values = values.reshape(1, 1) if values.numel() == 1 else values
    values = values.reshape(-1, 1) if values.ndim == 1 else values
    if layout.block_rows > 1:
        return values.repeat_interleave(layout.block_rows, dim=0)[:n].contiguous()
    return values.expand(n, -1).contiguous()


def _order(groups: Tensor, scheme: Scheme, k: int, where: str) -> Tensor:
    """The order in which inputs of one group stand together; each group must have its full number of them."""
    order = torch.argsort(groups, stable=True)
    expected = torch.arange(k) // scheme.group_width(k)
    if not torch.equal(groups[order].long(), expected):
        raise CheckpointError(
            f"{where}.weight_g_idx does not give {scheme.group_count(k)} groups of {scheme.group_width(k)} inputs; "
            "the file is damaged"
        )
    return order.to(torch.int32)
