"""`QTensor`: one quantized weight, as algorithms make it, checkpoints hold it and backends pack it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from woqfx.doublequant import ScaleCodes, compress
from woqfx.dtype import DType, GroupParams, scale_storage
from woqfx.errors import CheckpointError, PluginError
from woqfx.finite import all_finite
from woqfx.groups import split_groups
from woqfx.packing import lookup, pack, packed_width, unpack
from woqfx.scheme import DOUBLE_QUANT_BLOCK, Scheme


@dataclass(frozen=True, eq=False)
class QTensor:
    """A weight [..., N, K] in codes. Leading dimensions stack weights of one shape (experts). Immutable.

    `codes` uint8 [..., N, packed_width(K, bits)] in the order of `woqfx.packing`;
    `scales` [..., N, G] in the scheme's `scale_dtype`, or `ScaleCodes` of that shape when double-quantized;
    `zeros` uint8 [..., N, G], the code of 0 in each group, when asymmetric; or instead
    `offsets` [..., N, G] in `scale_dtype`, the weight of code 0 in each group of an integer grid;
    `order` int32 [..., K], when inputs are permuted (GPTQ's act-order): column j of the codes is input `order[j]`; each
    weight of a stack has an order of its own.
    """

    dtype: DType
    scheme: Scheme
    shape: tuple[int, ...]
    codes: Tensor
    scales: Tensor | ScaleCodes
    zeros: Tensor | None = None
    order: Tensor | None = None
    offsets: Tensor | None = None

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
        """From codes in bytes and float32 parameters [..., N, G].

        Raises `PluginError` for zero points that are no whole numbers from 0 to 255.
        """
        storage = scale_storage(scheme.scale_dtype)
        scales = compress(params.scale) if scheme.double_quant else params.scale.to(storage)
        zeros = None if params.zero is None else params.zero.to(torch.uint8)
        if zeros is not None and params.zero is not None and not torch.equal(zeros.to(params.zero.dtype), params.zero):
            odd = float(params.zero[zeros != params.zero][0])
            raise PluginError(f"a zero point of {odd:g}: it is the code of 0; round it before codes are chosen by it")
        offsets = None if params.offset is None else params.offset.to(storage)
        return cls(dtype, scheme, shape, packed, scales, zeros, order, offsets)

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
        """Scales, and zeros or offsets, as float32 [..., N, G]."""
        scale = self.scales.expand() if isinstance(self.scales, ScaleCodes) else self.scales
        zero, offset = (None if part is None else part.to(torch.float32) for part in (self.zeros, self.offsets))
        return GroupParams(scale.to(torch.float32), zero, offset)

    def unpacked(self) -> Tensor:
        """The codes, uint8 [..., N, K], one to a byte."""
        return unpack(self.codes, self.dtype.bits, self.in_features)

    def dequantize(self) -> Tensor:
        """The weight that is stored, float32 [..., N, K], inputs in their own order."""
        params, width = self.params(), self.scheme.group_width(self.in_features)
        levels = self.dtype.levels
        if levels is None:
            weight = self.unpacked().to(torch.float32)
        else:
            weight = lookup(self.codes, self.dtype.bits, levels, self.in_features)
        for which, _, block in split_groups(weight, width):
            own = params.of_groups(which)
            if levels is None and own.offset is None:
                block -= 1 << (self.dtype.bits - 1) if own.zero is None else own.zero.unsqueeze(-1)
            block *= own.scale.unsqueeze(-1)
            if own.offset is not None:
                block += own.offset.unsqueeze(-1)
        if self.order is None:
            return weight
        restored = torch.empty_like(weight)
        matrices = (part.view(-1, *self.shape[-2:]) for part in (restored, weight))
        for own, columns, order in zip(*matrices, self.order.view(-1, self.in_features).long(), strict=True):
            own[:, order] = columns
        return restored

    @classmethod
    def stack(cls, weights: Sequence[QTensor], scheme: Scheme) -> QTensor:
        """Weights [N, K] of one shape as one [E, N, K]. `scheme` may add double quantization."""
        first = weights[0]
        params = [weight.params() for weight in weights]
        zero = None if first.zeros is None else torch.stack([one.zero for one in params if one.zero is not None])
        offset = None if first.offsets is None else torch.stack([p.offset for p in params if p.offset is not None])
        order = None if first.order is None else torch.stack([w.order for w in weights if w.order is not None])
        return cls.of_packed(
            first.dtype,
            scheme,
            (len(weights), *first.shape),
            torch.stack([weight.codes for weight in weights]),
            GroupParams(torch.stack([one.scale for one in params]), zero, offset),
            order,
        )

    def __getitem__(self, index: int) -> QTensor:
        """One weight of a stack."""
        if len(self.shape) < 3:
            raise IndexError(f"a weight of shape {self.shape} is not a stack")
        one = self._each(self.shape[1:], lambda part: part[index])
        return one if self.order is None else replace(one, order=self.order[index])

    def ordered(self) -> QTensor:
        """The same with an `order`: that in which inputs come, if it has none."""
        if self.order is not None:
            return self
        order = torch.arange(self.in_features, dtype=torch.int32)
        return replace(self, order=order.expand(*self.shape[:-2], -1).contiguous())

    def rows(self, index: Tensor | slice) -> QTensor:
        """Some rows of a weight [N, K], by number [n] or by slice, as a weight of its own."""
        return self._each((len(self.codes[index]), self.in_features), lambda part: part[index])

    def matrices(self) -> list[QTensor]:
        """The weights [N, K] of a stack; a weight [N, K] alone."""
        if len(self.shape) == 2:
            return [self]
        plain = self._plain_scales()
        return [matrix for index in range(self.shape[0]) for matrix in plain[index].matrices()]

    def _each(self, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> QTensor:
        """The weight of this shape whose parts [..., N, ?] are the results of `change`."""
        plain = self._plain_scales()
        assert isinstance(plain.scales, Tensor)
        zeros, offsets = (None if part is None else change(part) for part in (plain.zeros, plain.offsets))
        codes, scales = change(plain.codes), change(plain.scales)
        return replace(plain, shape=shape, codes=codes, scales=scales, zeros=zeros, offsets=offsets)

    def _plain_scales(self) -> QTensor:
        """The same without double quantization, whose blocks of 256 scales cross rows."""
        if not isinstance(self.scales, ScaleCodes):
            return self
        scheme = replace(self.scheme, double_quant=False, scale_dtype="fp32")
        offsets = None if self.offsets is None else self.offsets.to(torch.float32)
        return replace(self, scheme=scheme, scales=self.scales.expand(), offsets=offsets)

    def tensors(self) -> dict[str, Tensor]:
        """The parts by their suffix on disk, in a fixed order. `specs` gives their types and shapes."""
        parts = {"codes": self.codes}
        if isinstance(self.scales, ScaleCodes):
            parts |= {"scale_codes": self.scales.codes, "scale_ranges": self.scales.ranges}
            parts |= {"scale_offset": self.scales.offset}
        else:
            parts |= {"scales": self.scales}
        optional = {"zeros": self.zeros, "offsets": self.offsets, "order": self.order}
        return parts | {suffix: part for suffix, part in optional.items() if part is not None}

    @staticmethod
    def specs(
        dtype: DType, scheme: Scheme, shape: tuple[int, ...], *, ordered: bool = False, offsets: bool = False
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """What `tensors` will hold for a weight of this shape: type and shape by suffix.

        A scheme does not say whether inputs are permuted (`ordered`), nor whether an asymmetric weight has `offsets`
        rather than zeros: a weight's parts do.
        """
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
        if not scheme.symmetric and offsets:
            specs["offsets"] = (scale_storage(scheme.scale_dtype), grid)
        elif not scheme.symmetric:
            specs["zeros"] = (torch.uint8, grid)
        if ordered:
            specs["order"] = (torch.int32, (*lead, k))
        return specs

    @classmethod
    def from_tensors(
        cls, dtype: DType, scheme: Scheme, shape: tuple[int, ...], parts: Mapping[str, Tensor], *, name: str
    ) -> QTensor:
        """Assemble and check parts that were read from a file. `name` is the weight's, for messages."""
        specs = cls.specs(dtype, scheme, shape, ordered="order" in parts, offsets="offsets" in parts)
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
        optional = {suffix: parts.get(suffix) for suffix in ("zeros", "order", "offsets")}
        return cls(dtype, scheme, tuple(shape), parts["codes"], scales, **optional)

    def check(self, name: str) -> None:
        """Refuse values that no quantizer writes: they would give NaN or read outside a table."""
        if not all_finite(self.scales.expand() if isinstance(self.scales, ScaleCodes) else self.scales):
            raise CheckpointError(f"{name}: a scale is not finite; the file is damaged or was not made by woqfx")
        if self.offsets is not None and not all_finite(self.offsets):
            raise CheckpointError(f"{name}: an offset is not finite; the file is damaged or was not made by woqfx")
        if self.offsets is not None and self.dtype.levels is not None:
            raise CheckpointError(f"{name}: has offsets, and {self.dtype.name} is a codebook: only integer grids do")
        if self.dtype.bits < 8 and self.zeros is not None and int(self.zeros.max()) >= 1 << self.dtype.bits:
            raise CheckpointError(
                f"{name}: a zero point is outside the {self.dtype.bits}-bit range of {self.dtype.name}"
            )
        levels = self.dtype.levels
        if levels is not None and len(levels) < 1 << self.dtype.bits and int(self.unpacked().max()) >= len(levels):
            raise CheckpointError(f"{name}: a code is outside the {len(levels)} levels of {self.dtype.name}")
        if self.order is not None:
            expected = torch.arange(self.in_features, dtype=torch.int32)
            if not torch.equal(self.order.sort(-1).values, expected.expand_as(self.order)):
                raise CheckpointError(f"{name}.order is not a permutation of {self.in_features} inputs")
