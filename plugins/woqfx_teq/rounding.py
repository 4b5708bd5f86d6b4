"""Rounding that gradients flow through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from woqfx import DType, GroupParams, Layer, Scheme, data_fit, split_groups


@dataclass(frozen=True, eq=False)
class Clipping:
    """How a weight's groups [N, G] are clipped while scales are trained: what is held of a data-driven fit.

    `ratio` is how much larger a group's scale is than the grid's own fit, `zero` its zero point, if it has one.
    """

    ratio: Tensor
    zero: Tensor | None


def find_clipping(weight: Tensor, layer: Layer, moments: Tensor | None) -> Clipping:
    """The clipping of a weight float32 [N, K] that costs least by the inputs' moments [K, K]; none without them."""
    ratios, zeros = [], []
    fit = None if moments is None else data_fit(moments, layer.dtype, layer.scheme)
    for _, _, groups in split_groups(weight, layer.scheme.group_width(weight.shape[1])):
        own = layer.dtype.fit(groups, symmetric=layer.scheme.symmetric)
        params = own if fit is None else fit(groups)
        ratios.append(params.scale / own.scale)
        zeros.append(params.zero)
    held = [zero for zero in zeros if zero is not None]
    return Clipping(torch.cat(ratios, 1), torch.cat(held, 1) if held else None)


def join(parts: Sequence[Clipping]) -> Clipping:
    """That of several weights as one weight of all their rows."""
    zeros = [part.zero for part in parts if part.zero is not None]
    return Clipping(torch.cat([part.ratio for part in parts]), torch.cat(zeros) if zeros else None)


def straight_through(weight: Tensor, dtype: DType, scheme: Scheme, clipping: Clipping) -> Tensor:
    """The rounded weight float32 [N, K], differentiable in the weight.

    With w' = v' s for a group of scale s, where v' is the grid's point next to v = w / s, the derivative of v' is taken
    to be that of v, and s to be in proportion to the group's range: a channel that stretches it is seen to.
    """
    parts = []
    for which, _, groups in split_groups(weight, scheme.group_width(weight.shape[1])):
        zero = None if clipping.zero is None else clipping.zero[:, which]
        with torch.no_grad():
            own = dtype.fit(groups, symmetric=scheme.symmetric)
            params = GroupParams(own.scale * clipping.ratio[:, which], zero).stored_as(scheme.scale_dtype)
            codes = dtype.encode(groups, params)
            points = dtype.decode(codes, GroupParams(torch.ones_like(params.scale), zero))
        extent = _extent(groups, symmetric=scheme.symmetric)
        growth = torch.where(extent > 0, extent / extent.detach(), 1.0)
        scale = (params.scale * growth).unsqueeze(-1)
        steps = groups / scale
        parts.append(((steps + (points - steps).detach()) * scale).flatten(-2))
    return torch.cat(parts, -1)


def _extent(groups: Tensor, *, symmetric: bool) -> Tensor:
    """The size of each group's range, [..., g] to [...]."""
    if symmetric:
        return groups.abs().amax(-1)
    return groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)
