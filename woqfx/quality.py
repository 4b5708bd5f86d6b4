"""How far a quantized weight is from the original."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.sums import sum_by_halves

_CHUNK = 1 << 19  # weights at a time; a few float32 copies of this many stay in the cache


def relative_error(weight: Tensor, q: QTensor) -> float:
    """|W - W'| / |W| in the Frobenius norm, to six digits; 0 for a weight of zeros.

    Rows are summed in float32, in an order of their own, and their sums in float64: the same number everywhere.
    """
    pairs = zip(weight.reshape(-1, *q.shape[-2:]), q.matrices(), strict=True)
    off, size = (torch.cat(sums) for sums in zip(*(_square_sums(*pair) for pair in pairs), strict=True))
    whole = _total(size)
    return float(f"{math.sqrt(_total(off) / whole):.6g}") if whole else 0.0


def dense_error(weight: Tensor, made: Tensor) -> float:
    """As `relative_error`, of a float32 weight that became another in floating point."""
    off, size = (sum_by_halves(part.square()) for part in (made.to(torch.float32) - weight, weight))
    whole = _total(size)
    return float(f"{math.sqrt(_total(off) / whole):.6g}") if whole else 0.0


def _square_sums(rows: Tensor, q: QTensor) -> tuple[Tensor, Tensor]:
    return registry().accelerated(lambda by: by.square_error(rows, q)) or square_sums(rows, q)


def square_sums(rows: Tensor, q: QTensor) -> tuple[Tensor, Tensor]:
    """Of each row of a weight [N, K] and what it became, the sums of (w' - w)^2 and of w^2: float32 [N] and [N]."""
    off, size = torch.empty(len(rows)), torch.empty(len(rows))
    step = max(1, _CHUNK // q.in_features)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        block = rows[part].to(torch.float32)
        off[part] = sum_by_halves(q.rows(part).dequantize().sub_(block).square_())
        size[part] = sum_by_halves(block.square())
    return off, size


def _total(sums: Tensor) -> float:
    return float(sums.numpy().sum(dtype="float64"))
