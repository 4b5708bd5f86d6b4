"""In which order columns are rounded: those that matter most first, while many others can still make up for them."""

from __future__ import annotations

import torch
from torch import Tensor


def descending(diagonal: Tensor) -> Tensor:
    """Columns from the largest second moment [K] to the smallest (`desc_act`); ties in their own order."""
    return diagonal.sort(descending=True, stable=True).indices


def group_aware(diagonal: Tensor, width: int) -> Tensor:
    """Groups from the largest second moment within them to the smallest, and within each its columns alike.

    Groups stay whole, so that nothing has to be permuted when the weight is used.
    """
    groups = torch.arange(len(diagonal)) // width
    peaks = diagonal.new_zeros(int(groups[-1]) + 1).scatter_reduce_(0, groups, diagonal, "amax")
    rank = torch.empty_like(peaks, dtype=torch.int64)
    rank[descending(peaks)] = torch.arange(len(peaks))
    order = descending(diagonal)
    return order[rank[groups[order]].sort(stable=True).indices]
