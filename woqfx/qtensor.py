"""`QTensor`: one quantized weight, as algorithms make it, checkpoints hold it and backends pack it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from woqfx.doublequant import ScaleCodes, compress
from woqfx.dtype import DType, GroupParams, scale_storage
from woqfx.errors import CheckpointError
from woqfx.groups import split_groups
from woqfx.packing import lookup, pack, packed_width, unpack
from woqfx.scheme import DOUBLE_QUANT_BLOCK, Scheme


@dataclass(frozen=True, eq=False)
class QTensor:
    """A weight [..., N, K] in codes. Leading dimensions stack weights of one shape (experts). Immutable.

    `codes` uint8 [..., N, packed_width(K, bits)] in the order of `woqfx.packing`;
    `scales` [..., N, G] in the scheme's `scale_dtype`, or `ScaleCodes` of that shape when double-quantized;
    `zeros` uint8 [..., N, G], the code of 0 in each group, when asymmetric;
    `order` int32 [K], when inputs are permuted (GPTQ's act-order): column j of the codes is input `order[j]`.
    """

    dtype: DType
    scheme: Scheme
    shape: tuple[int, ...]
    codes: Tensor
    scales: Tensor | ScaleCodes
    zeros: Tensor | None = None
    order: Tensor | None = None

    @classmethod
    def build(
        cls, dtype: DType, scheme: Scheme, codes: Tensor, params: GroupParams, order: Tensor | None = None
    ) -> QTensor:
        """From unpacked codes uint8 [..., N, K] and float32 parameters [..., N, G]."""
        return cls.of_packed(dtype, scheme, tuple(codes.shape), pack(codes, dtype.bits), params, order)

    @classmethod
    def of_packed(
        cls,
        dtype: DType,
        scheme: Scheme,
        shape: tuple[int, ...],
        packed: Tensor,
        params: GroupParams,
        order: Tensor | None = None,
    ) -> QTensor:
        """From codes in bytes and float32 parameters [..., N, G]."""
        scales = compress(params.scale) if scheme.double_quant else params.scale.to(scale_storage(scheme.scale_dtype))
        zeros = None if params.zero is None else params.zero.to(torch.uint8)
        return cls(dtype, scheme, shape, packed, scales, zeros, order)

    @property
    def out_features(self) -> int:
        """N."""
        return self.shape[-2]

    @property
    def in_features(self) -> int:
        """K."""
        return self.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes in memory, and on disk but for headers."""
        return sum(t.nbytes for t in self.tensors().values())

    def params(self) -> GroupParams:
        """Scales and zeros as float32 [..., N, G]."""
        scale = self.scales.expand() if isinstance(self.scales, ScaleCodes) else self.scales.to(torch.float32)
        return GroupParams(scale, None if self.zeros is None else self.zeros.to(torch.float32))

    def unpacked(self) -> Tensor:
        """The codes, uint8 [..., N, K], one to a byte."""
        return unpack(self.codes, self.dtype.bits, self.in_features)

    def dequantize(self) -> Tensor:
        """The weight that is stored, float32 [..., N, K], inputs in their own order."""
        params, width = self.params(), self.scheme.group_width(self.in_features)
        levels = self.dtype.levels
        if levels is None:
            weight = self.unpacked().to(torch.float32)
            middle = 1 << (self.dtype.bits - 1)
            for which, _, block in split_groups(weight, width):
                block -= middle if params.zero is None else params.zero[..., which].unsqueeze(-1)
        else:
            weight = lookup(self.codes, self.dtype.bits, levels, self.in_features)
        for which, _, block in split_groups(weight, width):
            block *= params.scale[..., which].unsqueeze(-1)
        if self.order is None:
            return weight
        restored = torch.empty_like(weight)
        restored[..., self.order.long()] = weight
        return restored

    @classmethod
    def stack(cls, weights: Sequence[QTensor], scheme: Scheme) -> QTensor:
        """Weights [N, K] of one shape and input order as one [E, N, K]. `scheme` may add double quantization."""
        first = weights[0]
        params = [weight.params() for weight in weights]
        zero = None if first.zeros is None else torch.stack([one.zero for one in params if one.zero is not None])
        return cls.of_packed(
            first.dtype,
            scheme,
            (len(weights), *first.shape),
            torch.stack([weight.codes for weight in weights]),
            GroupParams(torch.stack([one.scale for one in params]), zero),
            first.order,
        )

    def __getitem__(self, index: int) -> QTensor:
        """One weight of a stack."""
        if len(self.shape) < 3:
            raise IndexError(f"a weight of shape {self.shape} is not a stack")
        plain = self._plain_scales()
        assert isinstance(plain.scales, Tensor)
        zeros = None if plain.zeros is None else plain.zeros[index]
        return replace(plain, shape=self.shape[1:], codes=plain.codes[index], scales=plain.scales[index], zeros=zeros)

    def rows(self, index: Tensor | slice) -> QTensor:
        """Some rows of a weight [N, K], by number [n] or by slice, as a weight of its own."""
        plain = self._plain_scales()
        codes = plain.codes[index]
        zeros = None if plain.zeros is None else plain.zeros[index]
        assert isinstance(plain.scales, Tensor)
        return replace(
            plain, shape=(len(codes), self.in_features), codes=codes, scales=plain.scales[index], zeros=zeros
        )

    def flattened(self) -> QTensor:
        """A stack [..., N, K] as one weight of all its rows."""
        if len(self.shape) == 2:
            return self
        plain = self._plain_scales()
        assert isinstance(plain.scales, Tensor)
        codes, scales = plain.codes.flatten(0, -2), plain.scales.flatten(0, -2)
        zeros = None if plain.zeros is None else plain.zeros.flatten(0, -2)
        return replace(plain, shape=(len(codes), self.in_features), codes=codes, scales=scales, zeros=zeros)

    def _plain_scales(self) -> QTensor:
        """The same without double quantization, whose blocks of 256 scales cross rows."""
        if not isinstance(self.scales, ScaleCodes):
            return self
        scheme = replace(self.scheme, double_quant=False, scale_dtype="fp32")
        return replace(self, scheme=scheme, scales=self.scales.expand())

    def tensors(self) -> dict[str, Tensor]:
        """The parts by their suffix on disk, in a fixed order. `specs` gives their types and shapes."""
        parts = {"codes": self.codes}
        if isinstance(self.scales, ScaleCodes):
            parts |= {"scale_codes": self.scales.codes, "scale_ranges": self.scales.ranges}
            parts |= {"scale_offset": self.scales.offset}
        else:
            parts |= {"scales": self.scales}
        optional = {"zeros": self.zeros, "order": self.order}
        return parts | {suffix: part for suffix, part in optional.items() if part is not None}

    @staticmethod
    def specs(
        dtype: DType, scheme: Scheme, shape: tuple[int, ...], *, ordered: bool = False
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """What `tensors` will hold for a weight of this shape: type and shape by suffix."""
        *lead, n, k = shape
        grid = (*lead, n, scheme.group_count(k))
        specs: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "codes": (torch.uint8, (*lead, n, packed_width(k, dtype.bits)))
        }
        if scheme.double_quant:
            specs["scale_codes"] = (torch.uint8, grid)
            specs["scale_ranges"] = (torch.float32, (-(-prod(grid) // DOUBLE_QUANT_BLOCK),))
            specs["scale_offset"] = (torch.float32, ())
        else:
            specs["scales"] = (scale_storage(scheme.scale_dtype), grid)
        if not scheme.symmetric:
            specs["zeros"] = (torch.uint8, grid)
        if ordered:
            specs["order"] = (torch.int32, (k,))
        return specs

    @classmethod
    def from_tensors(
        cls, dtype: DType, scheme: Scheme, shape: tuple[int, ...], parts: Mapping[str, Tensor], *, name: str
    ) -> QTensor:
        """Assemble and check parts that were read from a file. `name` is the weight's, for messages."""
        specs = cls.specs(dtype, scheme, shape, ordered="order" in parts)
        if set(parts) != set(specs):
            raise CheckpointError(f"{name}: holds {sorted(parts)}, where its scheme needs {sorted(specs)}")
        for suffix, (kind, size) in specs.items():
            part = parts[suffix]
            if part.dtype != kind or tuple(part.shape) != size:
                raise CheckpointError(
                    f"{name}.{suffix} is {part.dtype} {list(part.shape)}, where its scheme needs {kind} {list(size)}"
                )
        made = cls.of_parts(dtype, scheme, shape, parts)
        made.check(name)
        return made

    @classmethod
    def of_parts(cls, dtype: DType, scheme: Scheme, shape: tuple[int, ...], parts: Mapping[str, Tensor]) -> QTensor:
        """Assemble parts that are known to be right: the inverse of `tensors`."""
        scales: Tensor | ScaleCodes
        if scheme.double_quant:
            scales = ScaleCodes(parts["scale_codes"], parts["scale_ranges"], parts["scale_offset"])
        else:
            scales = parts["scales"]
        return cls(dtype, scheme, tuple(shape), parts["codes"], scales, parts.get("zeros"), parts.get("order"))

    def check(self, name: str) -> None:
        """Refuse values that no quantizer writes: they would give NaN or read outside a table."""
        scale = self.params().scale
        if not bool(torch.isfinite(scale).all()):
            raise CheckpointError(f"{name}: a scale is not finite; the file is damaged or was not made by woqfx")
        if self.dtype.bits < 8 and self.zeros is not None and int(self.zeros.max()) >= 1 << self.dtype.bits:
            raise CheckpointError(
                f"{name}: a zero point is outside the {self.dtype.bits}-bit range of {self.dtype.name}"
            )
        levels = self.dtype.levels
        if levels is not None and len(levels) < 1 << self.dtype.bits and int(self.unpacked().max()) >= len(levels):
            raise CheckpointError(f"{name}: a code is outside the {len(levels)} levels of {self.dtype.name}")
        if self.order is not None:
            expected = torch.arange(self.in_features, dtype=torch.int32)
            if not torch.equal(self.order.sort().values, expected):
                raise CheckpointError(f"{name}.order is not a permutation of {self.in_features} inputs")
