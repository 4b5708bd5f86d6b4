"""RTN: every weight to the nearest point of its grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from woqfx import Algorithm, GroupParams, Layer, QTensor, option, quantize_nearest


@dataclass(frozen=True)
class RTNOptions:
    """What RTN can be asked."""

    mse_range: bool = option(
        False, "Clip each group's range where that lowers its squared error (40 ratios, 1 to 0.8)."
    )


class RTN(Algorithm):
    """Round to nearest: data-free, exact in one pass.

    With `mse_range`, each group takes the ratio of 1.000, 0.995 ... 0.805 that minimises its
    squared error |W - W'|^2, the larger ratio in a tie. These are Intel Neural Compressor's ratios;
    it chose one for a whole layer, where one for each group is what helps.
    """

    name = "rtn"
    Options = RTNOptions

    def round(self, layer: Layer) -> QTensor:
        """See `woqfx.Algorithm.round`."""
        if not self.options.mse_range:
            return super().round(layer)

        def fit(groups: Tensor) -> GroupParams:
            best: GroupParams | None = None
            least = torch.empty(0)
            for step in range(40):
                params = layer.dtype.fit(groups, symmetric=layer.scheme.symmetric, shrink=1 - step / 200)
                stored = params.stored_as(layer.scheme.scale_dtype)
                loss = (layer.dtype.decode(layer.dtype.encode(groups, stored), stored) - groups).square_().sum(-1)
                if best is None:
                    best, least = params, loss
                    continue
                better = loss < least
                least = torch.where(better, loss, least)
                zero = None
                if best.zero is not None and params.zero is not None:
                    zero = torch.where(better, params.zero, best.zero)
                best = GroupParams(torch.where(better, params.scale, best.scale), zero)
            assert best is not None
            return best

        return quantize_nearest(layer.weight, layer.dtype, layer.scheme, name=layer.name, fit=fit)
