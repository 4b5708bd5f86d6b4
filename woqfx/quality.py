"""How far a quantized weight is from the original."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from woqfx.qtensor import QTensor

_CHUNK = 1 << 19  # weights at a time; a few float32 copies of this many stay in the cache


def relative_error(weight: Tensor, q: QTensor) -> float:
    """|W - W'| / |W| in the Frobenius norm, to six digits; 0 for a weight of zeros.

    Rows are summed in float32, their sums in float64 by numpy: neither depends on the number of threads.
    """
    k = q.in_features
    original = weight.reshape(-1, k)
    stored = q.flattened()
    off = size = 0.0
    step = max(1, _CHUNK // k)
    for start in range(0, len(original), step):
        rows = slice(start, start + step)
        block = original[rows].to(torch.float32)
        off += _square_sum(stored.rows(rows).dequantize().sub_(block))
        size += _square_sum(block)
    return float(f"{math.sqrt(off / size):.6g}") if size else 0.0


def _square_sum(block: Tensor) -> float:
    return float(block.square().sum(dim=1).numpy().sum(dtype="float64"))
