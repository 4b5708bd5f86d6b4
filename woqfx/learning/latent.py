"""A weight on its grid, made differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from woqfx.dtype import DType
from woqfx.groups import split_groups
from woqfx.learning.scaled import Scaled
from woqfx.qtensor import QTensor

#: How near to the edge of its level's cell a number may start, as a share of the way there: so that little turns it.
_EDGE = 0.9


class Latent(Scaled):
    """What rounds to the codes of a quantized weight [N, K]: a number for each weight, in units of its group's scale.

    `steps` [N, K] is the weight that was rounded, where that rounds to the code; where rounding was not to the nearest
    (GPTQ), it is what lies nearest to the weight and still rounds to the code. Gradients pass through rounding as if it
    were not there (arXiv 1308.3432); `gain` gets that of the stored weight.
    """

    def __init__(self, weight: Tensor, q: QTensor) -> None:
        super().__init__(q)
        landed = self._decode(q.unpacked())
        wanted = self._columns(weight).float() / self._spread(self._scale)
        self.step = step_size(self.dtype)
        below, above = _ways(self.dtype, landed)
        self.steps = torch.clamp(wanted, landed - _EDGE * below, landed + _EDGE * above)
        self._low, self._high = float(landed.min()) - self.step / 2, float(landed.max()) + self.step / 2

    def parts(self) -> dict[str, Tensor]:
        """See `Scaled.parts`."""
        return {"steps": self.steps, **super().parts()}

    def codes(self) -> Tensor:
        """Those that `steps` round to."""
        parts = []
        for which, _, block in split_groups(self.steps, self._width):
            parts.append(self.dtype.encode(block, self._unit(which)).flatten(-2))
        return torch.cat(parts, -1)

    def backward(self, gradient: Tensor) -> dict[str, Tensor]:
        """Of `steps` [N, K], too."""
        of_steps = self._columns(gradient) * self._spread(self._scale * self.gain)
        return {"steps": of_steps, **super().backward(gradient)}

    def settle(self) -> None:
        """Hold what is rounded on the grid: beyond its ends it would not come back."""
        self.steps.clamp_(self._low, self._high)


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
