"""A weight on its grid, made differentiable."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from woqfx.dtype import DType, GroupParams
from woqfx.groups import split_groups
from woqfx.qtensor import QTensor

#: How near to the edge of its level's cell a number may start, as a share of the way there: so that little turns it.
_EDGE = 0.9


class Latent:
    """What rounds to the codes of a quantized weight [N, K]: a number for each weight, in units of its group's scale.

    `steps` [N, K] is the weight that was rounded, where that rounds to the code; where rounding was not to the nearest
    (GPTQ), it is what lies nearest to the weight and still rounds to the code. `gain` [N, G] multiplies the scales.
    Gradients pass through rounding as if it were not there (arXiv 1308.3432); `gain` gets that of the stored weight.
    """

    def __init__(self, weight: Tensor, q: QTensor) -> None:
        self.q, self.dtype = q, q.dtype
        self._width = q.scheme.group_width(q.in_features)
        params = q.params()
        self._scale, self._zero = params.scale, params.zero
        self.gain = torch.ones_like(self._scale)
        columns = weight if q.order is None else weight[:, q.order.long()]
        landed = self._grouped_decode(q.unpacked())
        wanted = columns.float() / self._spread(self._scale)
        self.step = step_size(self.dtype)
        below, above = _ways(self.dtype, landed)
        self.steps = torch.clamp(wanted, landed - _EDGE * below, landed + _EDGE * above)
        self.low, self.high = float(landed.min()), float(landed.max())

    def weight(self) -> Tensor:
        """The weight that is stored, float32 [N, K], inputs in their own order."""
        return self._restore(self.rounded() * self._spread(self._scale * self.gain))

    def rounded(self) -> Tensor:
        """`steps` on the grid, still in units of the scales, in the order of the codes."""
        return self._grouped_decode(self.codes())

    def codes(self) -> Tensor:
        """Codes uint8 [N, K]."""
        parts = []
        for which, _, block in split_groups(self.steps, self._width):
            parts.append(self.dtype.encode(block, self._unit(which)).flatten(-2))
        return torch.cat(parts, -1)

    def backward(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of `steps` [N, K] and `gain` [N, G] for that of the weight [N, K]."""
        if self.q.order is not None:
            gradient = gradient[:, self.q.order.long()]
        of_steps = gradient * self._spread(self._scale * self.gain)
        by_gain = gradient * self.rounded() * self._spread(self._scale)
        sums = [block.sum(-1) for _, _, block in split_groups(by_gain, self._width)]
        return of_steps, torch.cat(sums, -1)

    def qtensor(self) -> QTensor:
        """The weight as it is now."""
        params = GroupParams(self._scale * self.gain, self._zero)
        made = QTensor.build(self.dtype, self.q.scheme, self.codes(), params.stored_as(self.q.scheme.scale_dtype))
        return replace(made, order=self.q.order)

    def _unit(self, which: slice) -> GroupParams:
        zero = None if self._zero is None else self._zero[:, which]
        return GroupParams(torch.ones_like(self._scale[:, which]), zero)

    def _grouped_decode(self, codes: Tensor) -> Tensor:
        parts = []
        for which, _, block in split_groups(codes, self._width):
            parts.append(self.dtype.decode(block, self._unit(which)).flatten(-2))
        return torch.cat(parts, -1)

    def _spread(self, per_group: Tensor) -> Tensor:
        """[N, G] to [N, K]."""
        return per_group.repeat_interleave(self._width, -1)[:, : self.q.in_features]

    def _restore(self, columns: Tensor) -> Tensor:
        if self.q.order is None:
            return columns
        restored = torch.empty_like(columns)
        restored[:, self.q.order.long()] = columns
        return restored


def step_size(dtype: DType) -> float:
    """The mean distance between neighbouring levels, in units of the scale: 1 for an integer grid."""
    if dtype.levels is None:
        return 1.0
    distinct = torch.unique(dtype.levels)
    return float((distinct[-1] - distinct[0]) / (len(distinct) - 1))


def _ways(dtype: DType, landed: Tensor) -> tuple[Tensor, Tensor]:
    """How far it is from levels [N, K] to the lower and to the upper edge of their cells, halfway to the next level."""
    if dtype.levels is None:
        half = torch.full_like(landed, 0.5)
        return half, half
    distinct = torch.unique(dtype.levels)
    end = torch.full((1,), step_size(dtype) / 2)
    halves = torch.cat([end, distinct.diff() / 2, end])
    number = torch.bucketize(landed, (distinct[1:] + distinct[:-1]) / 2)
    return halves[number], halves[number + 1]
