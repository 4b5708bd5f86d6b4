"""Matrices [N, K] of one input, made into as few weights as kernels can multiply by at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from woqfx import QTensor, Scheme, quantize_nearest, registry
from woqfx_native.packed import pack_joined

#: How a head that the checkpoint keeps is held in 8 bits.
_HEAD_GROUP = 32


@dataclass(frozen=True)
class HeadInEightBits:
    """Quantize a kept matrix to 8 bits in groups of 32, to be multiplied in this compute dtype."""

    compute_dtype: str

    def scheme(self, inputs: int) -> Scheme:
        """The scheme for a matrix with so many inputs."""
        group = min(_HEAD_GROUP, inputs)
        return Scheme(dtype="int8", group_size=group, scale_dtype="fp16", compute_dtype=self.compute_dtype)

    def quantize(self, weight: Tensor, name: str) -> QTensor:
        """The matrix [N, K] rounded to the nearest codes."""
        return quantize_nearest(weight, registry().dtype("int8"), self.scheme(weight.shape[1]), name=name)


def packed_side_by_side(matrices: Sequence[QTensor]) -> list[Tensor]:
    """The packed bytes of weights of one dtype, scheme and width: joined where they take their inputs in one order."""
    runs: list[list[QTensor]] = []
    for matrix in matrices:
        if runs and _same_order(runs[-1][-1], matrix):
            runs[-1].append(matrix)
        else:
            runs.append([matrix])
    return [pack_joined(run) for run in runs]


def _same_order(a: QTensor, b: QTensor) -> bool:
    return a.order is None or b.order is None or torch.equal(a.order, b.order)
