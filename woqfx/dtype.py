"""Storage grids: what numbers a weight can be stored as.

A dtype is one of two families, both of them plain data, so that one kernel serves every member:

* `IntegerGrid`: 2^bits equal steps, w ~ (code - zero) * scale, or code * scale + offset.
* `Codebook`: up to 2^bits levels of any value, w ~ levels[code] * scale.

Codes are unsigned. In what follows `g` is the width of a group, and "groups" is any float32 tensor
[..., g] whose last dimension holds the weights that share one scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

_FLOOR = torch.finfo(torch.float32).smallest_normal
_STORAGE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def scale_storage(scale_dtype: str) -> torch.dtype:
    """The torch type that stores scales of a `Scheme.scale_dtype`."""
    return _STORAGE[scale_dtype]


@dataclass(frozen=True)
class GroupParams:
    """What turns codes into weights: float32 `scale` [...] and, if asymmetric, `zero` [...] or `offset` [...].

    `zero` is the code (a whole number, held as float32) that stands for the weight 0: w ~ (code - zero) * scale.
    `offset` is the weight that code 0 stands for, any number: w ~ code * scale + offset (GGUF's Q4_1 and Q5_1).
    """

    scale: Tensor
    zero: Tensor | None = None
    offset: Tensor | None = None

    def of_groups(self, which: slice) -> GroupParams:
        """Those of some groups of all rows, [..., G] to [..., n]."""
        zero, offset = (None if part is None else part[..., which] for part in (self.zero, self.offset))
        return GroupParams(self.scale[..., which], zero, offset)

    def stored_as(self, scale_dtype: str) -> GroupParams:
        """The same with scales and offsets rounded to the type that stores them, still held as float32.

        A scale too small for that type becomes its smallest normal number, at which the group is
        still stored to within half a step. One too large becomes infinite, which `woqfx.nearest`
        reports.
        """
        if scale_dtype == "fp32":
            return self
        storage = _STORAGE[scale_dtype]
        rounded = self.scale.to(storage).to(torch.float32)
        floor = torch.finfo(storage).smallest_normal
        if not bool((rounded.abs() >= floor).all()):
            rounded = torch.copysign(rounded.abs().clamp_(min=floor), self.scale)
        offset = None if self.offset is None else self.offset.to(storage).to(torch.float32)
        return GroupParams(rounded, self.zero, offset)


class DType(ABC):
    """A storage grid. Subclass `IntegerGrid` or `Codebook` rather than this."""

    #: The name that schemes and the command line use.
    name: ClassVar[str]
    #: Bits per code, 1 to 8.
    bits: ClassVar[int]
    #: Whether groups may have a zero point of their own (`Scheme.symmetric=False`).
    has_asymmetric: ClassVar[bool]

    @property
    @abstractmethod
    def levels(self) -> Tensor | None:
        """The codebook, float32 [<= 2^bits] in code order; None for an integer grid."""

    @abstractmethod
    def fit(self, groups: Tensor, *, symmetric: bool, shrink: float = 1.0) -> GroupParams:
        """The parameters of each group: [..., g] to [...].

        `shrink` below 1 clips the range to that share of itself. A group of zeros must decode to zeros: it gets
        scale 1, or, where no level is 0, the smallest scale.
        """

    @abstractmethod
    def encode(self, groups: Tensor, params: GroupParams) -> Tensor:
        """The nearest codes, uint8 [..., g]."""

    @abstractmethod
    def decode(self, codes: Tensor, params: GroupParams) -> Tensor:
        """The weights that codes [..., g] stand for, float32."""

    @abstractmethod
    def integers(self, codes: Tensor, params: GroupParams) -> tuple[Tensor, Tensor]:
        """Codes as whole numbers for integer arithmetic: float32 [..., g], and the scale [...] that goes with them.

        For a codebook these are its levels rounded once to int8; for an integer grid, `code - zero`, or, where
        groups have an offset, which is added elsewhere, `code`.
        """

    def __repr__(self) -> str:
        return f"<dtype {self.name}: {self.bits} bits>"


class IntegerGrid(DType):
    """Equal steps: w ~ (code - zero) * scale, with zero = 2^(bits-1) when symmetric.

    Symmetric scales are amax / (2^(bits-1) - 1), so that the code for -2^(bits-1) stays unused, or,
    with `full_range`, the signed weight of largest magnitude / -2^(bits-1), which uses every code.
    Asymmetric ranges always hold 0: scale = (max - min) / (2^bits - 1), zero = round(-min / scale).
    Rounding is half to even throughout. These are Intel Neural Compressor's formulas.
    """

    full_range: ClassVar[bool] = False
    has_asymmetric: ClassVar[bool] = True

    @property
    def levels(self) -> None:
        """None: an integer grid has no table."""
        return

    @cached_property
    def middle(self) -> int:
        """The code of 0 in a symmetric group, 2^(bits-1)."""
        return int(2 ** (self.bits - 1))

    @cached_property
    def top(self) -> int:
        """The largest code, 2^bits - 1."""
        return int(2**self.bits - 1)

    def fit(self, groups: Tensor, *, symmetric: bool, shrink: float = 1.0) -> GroupParams:
        """See `DType.fit`; the formulas are in the class's docstring."""
        # Separate reductions: PyTorch's aminmax and vector_norm take ten times as long.
        if symmetric and not self.full_range:
            amax = groups.abs().amax(dim=-1)
            return GroupParams(_nonzero(amax * shrink / (self.middle - 1), amax))
        low, high = groups.amin(dim=-1), groups.amax(dim=-1)
        if not symmetric:
            low, high = low.clamp_(max=0).mul_(shrink), high.clamp_(min=0).mul_(shrink)
            scale = (high - low).div_(self.top)
            zero = torch.round(-low / scale).nan_to_num_(nan=0.0).clamp_(0, self.top)
            return GroupParams(_nonzero(scale, high - low), zero)
        extreme = torch.where(high > -low, high, low)
        return GroupParams(_nonzero(extreme * shrink / -self.middle, extreme))

    def encode(self, groups: Tensor, params: GroupParams) -> Tensor:
        """See `DType.encode`."""
        if params.offset is not None:
            steps = ((groups - params.offset.unsqueeze(-1)) / params.scale.unsqueeze(-1)).round_()
        else:
            steps = (groups / params.scale.unsqueeze(-1)).round_()
            steps += self.middle if params.zero is None else params.zero.unsqueeze(-1)
        # By way of int16, three times as fast: PyTorch converts float32 to uint8 one number at a time.
        return steps.clamp_(0, self.top).to(torch.int16).to(torch.uint8)

    def decode(self, codes: Tensor, params: GroupParams) -> Tensor:
        """See `DType.decode`."""
        weights = self._steps(codes, params).mul_(params.scale.unsqueeze(-1))
        return weights if params.offset is None else weights.add_(params.offset.unsqueeze(-1))

    def integers(self, codes: Tensor, params: GroupParams) -> tuple[Tensor, Tensor]:
        """See `DType.integers`."""
        return self._steps(codes, params), params.scale

    def _steps(self, codes: Tensor, params: GroupParams) -> Tensor:
        steps = codes.to(torch.float32)
        if params.offset is not None:
            return steps
        steps -= self.middle if params.zero is None else params.zero.unsqueeze(-1)
        return steps


class Codebook(DType):
    """Levels of any value: w ~ levels[code] * scale, with scale = amax / max |level|.

    The nearest level wins; halfway between two, the lower one. Where two codes hold one level
    (+0 and -0), the first is written.
    """

    #: The levels in code order: 2 to 2^bits numbers.
    table: ClassVar[Sequence[float]]
    has_asymmetric: ClassVar[bool] = False

    @cached_property
    def levels(self) -> Tensor:
        """The table as float32 [n]."""
        return torch.tensor(self.table, dtype=torch.float32)

    @cached_property
    def _reach(self) -> float:
        return float(self.levels.abs().max())

    @cached_property
    def _ladder(self) -> tuple[int, list[tuple[float, int]]]:
        """The code of the lowest level; then each threshold, ascending, and what it adds to the code, mod 256."""
        codes: dict[float, int] = {}
        for code, level in enumerate(self.levels.tolist()):
            codes.setdefault(level + 0.0, code)  # -0.0 + 0.0 is 0.0
        values = torch.tensor(sorted(codes), dtype=torch.float32)
        ranked = [codes[value] for value in values.tolist()]
        thresholds = ((values[1:] + values[:-1]) / 2).tolist()
        return ranked[0], [(t, (ranked[i + 1] - ranked[i]) % 256) for i, t in enumerate(thresholds)]

    @cached_property
    def _int8_levels(self) -> Tensor:
        return torch.round(self.levels * (127.0 / self._reach))

    def fit(self, groups: Tensor, *, symmetric: bool, shrink: float = 1.0) -> GroupParams:
        """See `DType.fit`. `symmetric` must be true: a codebook has no zero point."""
        if not symmetric:
            raise ValueError(f"{self.name} is a codebook: it has no asymmetric form")
        amax = groups.abs().amax(dim=-1)
        empty = 1.0 if bool((self.levels == 0).any()) else _FLOOR  # without a level of 0, as near to it as can be
        return GroupParams(_nonzero(amax * (shrink / self._reach), amax, empty))

    def encode(self, groups: Tensor, params: GroupParams) -> Tensor:
        """See `DType.encode`."""
        # Multiplying by the reciprocal, as bitsandbytes does: the two differ in rare ties.
        steps = groups * params.scale.reciprocal().unsqueeze(-1)
        lowest, ladder = self._ladder
        codes = torch.full_like(steps, lowest, dtype=torch.uint8)
        # A compare and an add per level run at vector speed; a binary search per weight is five times slower.
        for threshold, gain in ladder:
            codes.add_((steps > threshold).view(torch.uint8), alpha=gain)
        return codes

    def decode(self, codes: Tensor, params: GroupParams) -> Tensor:
        """See `DType.decode`."""
        return _take(self.levels, codes).mul_(params.scale.unsqueeze(-1))

    def integers(self, codes: Tensor, params: GroupParams) -> tuple[Tensor, Tensor]:
        """See `DType.integers`: levels / max |level| * 127, rounded to whole numbers."""
        return _take(self._int8_levels, codes), params.scale * (self._reach / 127.0)


def _nonzero(scale: Tensor, extent: Tensor, empty: float = 1.0) -> Tensor:
    """Scale `empty` for a group of zeros; otherwise never so small that its reciprocal overflows."""
    if bool((scale.abs() >= _FLOOR).all()):
        return scale
    raised = torch.copysign(scale.abs().clamp_(min=_FLOOR), scale)
    return torch.where(extent == 0, torch.full_like(scale, empty), raised)


def _take(table: Tensor, codes: Tensor) -> Tensor:
    """`table[codes]`, several times as fast."""
    return table.index_select(0, codes.flatten().int()).view(codes.shape)
