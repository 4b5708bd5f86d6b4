"""AWQ: the algorithm and its options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from woqfx import Algorithm, Block, Feed, Fold, Layer, QTensor, data_fit, option, quantize_nearest
from woqfx_awq.fed import fed_weights
from woqfx_awq.search import Search

#: Bytes of second moments that are gathered at a time, unless those of one feed are more.
_MOMENTS = 1 << 29


@dataclass(frozen=True)
class AWQOptions:
    """What AWQ can be asked."""

    grid: int = option(20, "Exponents 0, 1/grid ... 1 of the inputs' magnitude are searched, from coarse to fine.")
    duo_scaling: bool = option(True, "Also divide by the weights' own magnitude, to the power of what is left of 1.")
    scale: bool = option(True, "Rescale input channels; without it, ranges are clipped and no more.")
    clip: bool = option(True, "Clip each group's range where that lowers the output's error, in the search too.")


class AWQ(Algorithm):
    """Activation-aware scaling (Lin et al., arXiv 2306.00978), for every feed of a block and on the real grid.

    For each feed, input channels are multiplied by s = x^a / w^(1-a), where x is the mean magnitude of the inputs and
    w that of the weights, relative to their group's largest. The exponent a is the one that gives the outputs of the
    weights that are fed the least square error, which second moments tell exactly; unless s = 1 gives less. Rounding is
    to the nearest, with the range of each group clipped to the least error of the output.
    """

    name = "awq"
    Options = AWQOptions
    needs_data = True

    def transform(self, block: Block) -> Iterator[Fold]:
        """See `woqfx.Algorithm.transform`."""
        if not self.options.scale:
            return
        search = Search(self.options.grid, self.options.duo_scaling, self.options.clip)
        for feeds in _portions(block):
            names = [name for feed in feeds for name in feed.consumers if name in block.layers]
            inputs = block.statistics(names)
            for feed in feeds:
                found = search.best(fed_weights(block, feed, inputs), feed.size, block.map)
                if found.exponent is not None:
                    facts = {"alpha": found.exponent, "error": found.error, "error_before": found.error_before}
                    yield Fold(feed, found.scale, facts)

    def round(self, layer: Layer) -> QTensor:
        """See `woqfx.Algorithm.round`."""
        if layer.inputs is None or not layer.inputs.tokens or not self.options.clip:
            return super().round(layer)
        fit = data_fit(layer.inputs.moments, layer.dtype, layer.scheme)
        return quantize_nearest(layer.weight, layer.dtype, layer.scheme, name=layer.name, fit=fit)


def _portions(block: Block) -> Iterator[list[Feed]]:
    """Feeds whose statistics are gathered together."""
    portion: list[Feed] = []
    size = 0
    for feed in block.feeds:
        moments = max(4 * index.numel() * index.shape[-1] for index in feed.consumers.values())
        if portion and size + moments > _MOMENTS:
            yield portion
            portion, size = [], 0
        portion.append(feed)
        size += moments
    if portion:
        yield portion
