"""Numbers that are learned relative to their own size: scales of a quantized weight, and vectors."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from woqfx.dtype import GroupParams
from woqfx.groups import split_groups
from woqfx.qtensor import QTensor


class Scaled:
    """A quantized weight [N, K] whose codes stay; `gain` [N, G] multiplies its scales."""

    def __init__(self, q: QTensor) -> None:
        self.q, self.dtype = q, q.dtype
        self._width = q.scheme.group_width(q.in_features)
        params = q.params()
        self._scale, self._zero = params.scale, params.zero
        self.gain = torch.ones_like(self._scale)

    def parts(self) -> dict[str, Tensor]:
        """What is learned, by attribute."""
        return {"gain": self.gain}

    def codes(self) -> Tensor:
        """Codes uint8 [N, K]."""
        return self.q.unpacked()

    def rounded(self) -> Tensor:
        """The levels of the codes, in units of the scales, float32 [N, K] in the order of the codes."""
        return self._decode(self.codes())

    def weight(self) -> Tensor:
        """The weight as it is now, float32 [N, K], inputs in their own order."""
        columns = self.rounded() * self._spread(self._scale * self.gain)
        if self.q.order is None:
            return columns
        restored = torch.empty_like(columns)
        restored[:, self.q.order.long()] = columns
        return restored

    def backward(self, gradient: Tensor) -> dict[str, Tensor]:
        """The gradients of what is learned, by attribute, for that of the weight [N, K]."""
        by_gain = self._columns(gradient) * self.rounded() * self._spread(self._scale)
        return {"gain": torch.cat([block.sum(-1) for _, _, block in split_groups(by_gain, self._width)], -1)}

    def settle(self) -> None:
        """Called when what is learned has moved."""

    def result(self) -> QTensor:
        """The weight as it will be stored."""
        params = GroupParams(self._scale * self.gain, self._zero)
        made = QTensor.build(self.dtype, self.q.scheme, self.codes(), params.stored_as(self.q.scheme.scale_dtype))
        return replace(made, order=self.q.order)

    def _unit(self, which: slice) -> GroupParams:
        zero = None if self._zero is None else self._zero[:, which]
        return GroupParams(torch.ones_like(self._scale[:, which]), zero)

    def _decode(self, codes: Tensor) -> Tensor:
        parts = []
        for which, _, block in split_groups(codes, self._width):
            parts.append(self.dtype.decode(block, self._unit(which)).flatten(-2))
        return torch.cat(parts, -1)

    def _columns(self, weight: Tensor) -> Tensor:
        """In the order of the codes."""
        return weight if self.q.order is None else weight[:, self.q.order.long()]

    def _spread(self, per_group: Tensor) -> Tensor:
        """[N, G] to [N, K]."""
        return per_group.repeat_interleave(self._width, -1)[:, : self.q.in_features]


class ScaledVector:
    """A norm's weight, or a bias, [K] times `gain` [K]. By its own size: in one norm there are numbers of all sizes."""

    def __init__(self, vector: Tensor) -> None:
        self._vector, self.gain = vector, torch.ones_like(vector)

    def parts(self) -> dict[str, Tensor]:
        """See `Scaled.parts`."""
        return {"gain": self.gain}

    def weight(self) -> Tensor:
        """The vector as it is now."""
        return self._vector * self.gain

    def backward(self, gradient: Tensor) -> dict[str, Tensor]:
        """See `Scaled.backward`."""
        return {"gain": gradient * self._vector}

    def settle(self) -> None:
        """See `Scaled.settle`."""

    def result(self) -> Tensor:
        """The vector as it will be stored, but for its type."""
        return self.weight()
