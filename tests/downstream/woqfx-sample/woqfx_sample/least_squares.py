"""Scales by least squares."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import woqfx


@dataclass(frozen=True)
class LeastSquaresOptions:
    """What the algorithm can be asked."""

    steps: int = woqfx.option(5, "How often to choose codes for the scales, then scales for the codes.")


class LeastSquares(woqfx.Algorithm):
    """Takes turns: the nearest codes for the scales, then the scales with the least squared error for the codes.

    For codes that stand for q, the error |w - s q|^2 is least at s = <w, q> / <q, q>. Neither turn can raise it.
    """

    name = "least_squares"
    Options = LeastSquaresOptions

    def round(self, layer: woqfx.Layer) -> woqfx.QTensor:
        """See `woqfx.Algorithm.round`."""

        def fit(groups: Tensor) -> woqfx.GroupParams:
            params = layer.dtype.fit(groups, symmetric=layer.scheme.symmetric)
            for _ in range(self.options.steps):
                steps = layer.dtype.decode(layer.dtype.encode(groups, params), params) / params.scale.unsqueeze(-1)
                scale = (groups * steps).sum(-1) / steps.square().sum(-1)
                sound = torch.isfinite(scale) & (scale.abs() > torch.finfo(torch.float32).tiny)
                params = replace(params, scale=torch.where(sound, scale, params.scale))
            return params

        return woqfx.quantize_nearest(layer.weight, layer.dtype, layer.scheme, name=layer.name, fit=fit)
