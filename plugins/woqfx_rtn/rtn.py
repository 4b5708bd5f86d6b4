"""RTN: every weight to the nearest point of its grid."""

from __future__ import annotations

from dataclasses import dataclass

from woqfx import Algorithm, Layer, QTensor, option, quantize_nearest

_RATIOS = tuple(1 - step / 200 for step in range(40))


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
        return quantize_nearest(layer.weight, layer.dtype, layer.scheme, name=layer.name, ratios=_RATIOS)
