"""Scales of groups that cost the least on the data: a search over how far each group's range is clipped.

A row w of weights that becomes w' changes its output by a mean square of (w - w') M (w - w')^T, where M is the second
moment of the inputs (`Statistics.moments`). Each group is judged by its own part of M: the diagonal, which takes the
inputs as uncorrelated, or the whole block of g x g.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from woqfx.dtype import DType, GroupParams, IntegerGrid
from woqfx.groups import split_groups
from woqfx.scheme import Scheme

#: What is kept of a group's range: from somewhat more than all of it to a little over half.
RATIOS = tuple(1.2 - 0.05 * step for step in range(14))


def fit_to_data(
    groups: Tensor,
    metric: Tensor,
    dtype: DType,
    scheme: Scheme,
    *,
    ratios: Sequence[float] | None = None,
    refits: int = 2,
) -> GroupParams:
    """The parameters of `groups` float32 [..., n, g] that cost the least by `metric`: weights [n, g], or M [n, g, g].

    Each group takes the best of `ratios`, by default `candidate_ratios`, the first in a tie. Then its scale becomes,
    `refits` times, the least-squares one of the codes that it gave, where that costs less still. Compared are scales
    as they are stored.
    """

    def judged(params: GroupParams) -> tuple[GroupParams, Tensor]:
        stored = params.stored_as(scheme.scale_dtype)
        off = dtype.decode(dtype.encode(groups, stored), stored).sub_(groups)
        return stored, _dot(metric, off, off)

    def clipped(ratio: float) -> tuple[GroupParams, Tensor]:
        return judged(dtype.fit(groups, symmetric=scheme.symmetric, shrink=ratio))

    first, *others = ratios or candidate_ratios(dtype, scheme)
    best, least = clipped(first)
    for ratio in others:
        best, least = _better(best, least, *clipped(ratio))
    for _ in range(refits):
        best, least = _better(best, least, *judged(_least_squares(groups, metric, dtype, best)))
    return best


def candidate_ratios(dtype: DType, scheme: Scheme) -> tuple[float, ...]:
    """`RATIOS`, and for lopsided grids their negatives: the scale's sign decides on which side the wider end lies.

    Lopsided are full-range integers (-8 to 7) and codebooks like NF4. Double quantization, made for scales that
    are alike, keeps one sign, as do integer grids whose own fit leaves their odd code unused.
    """
    if isinstance(dtype, IntegerGrid):
        lopsided = dtype.full_range
    else:
        assert dtype.levels is not None
        lopsided = not torch.equal(dtype.levels.sort().values, (-dtype.levels).sort().values)
    both = lopsided and scheme.symmetric and not scheme.double_quant
    return RATIOS + tuple(-ratio for ratio in RATIOS) if both else RATIOS


def data_fit(moments: Tensor, dtype: DType, scheme: Scheme) -> Callable[[Tensor], GroupParams]:
    """`fit_to_data` for `quantize_nearest`: judges groups of a weight [N, K] by their part of `moments`, [K, K] or [K].

    Takes blocks of groups as `split_groups` gives them: their width tells which they are.
    """
    metrics = {metric.shape[1]: metric for metric in _metrics(moments, scheme.group_width(len(moments)))}
    return lambda groups: fit_to_data(groups, metrics[groups.shape[-1]], dtype, scheme)


def _least_squares(groups: Tensor, metric: Tensor, dtype: DType, params: GroupParams) -> GroupParams:
    """The scale that suits the codes best, by the metric; the old one where the best would not have its sign."""
    unit = GroupParams(torch.ones_like(params.scale), params.zero)
    steps = dtype.decode(dtype.encode(groups, params), unit)
    scale = _dot(metric, steps, groups) / _dot(metric, steps, steps)
    return GroupParams(torch.where(scale / params.scale > 0, scale, params.scale), params.zero)


def _metrics(moments: Tensor, width: int) -> Iterator[Tensor]:
    """The diagonals [n, g] or diagonal blocks [n, g, g] of the moments, of full groups and of the shorter last one."""
    for which, columns, block in split_groups(moments, width):
        if moments.dim() == 1:
            yield block
        else:
            square = block[columns].view(which.stop - which.start, -1, *block.shape[1:])
            yield square.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


def _dot(metric: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """left M right^T of each group: [..., n, g] to [..., n]."""
    if metric.dim() == 2:
        return (left * right).mul_(metric).sum(-1)
    return torch.einsum("...ng,ngh->...nh", left, metric).mul_(right).sum(-1)


def _better(params: GroupParams, loss: Tensor, other: GroupParams, other_loss: Tensor) -> tuple[GroupParams, Tensor]:
    """Group by group, the parameters of the smaller loss; the first in a tie."""
    wins = other_loss < loss
    zero = None
    if params.zero is not None and other.zero is not None:
        zero = torch.where(wins, other.zero, params.zero)
    return GroupParams(torch.where(wins, other.scale, params.scale), zero), torch.where(wins, other_loss, loss)
