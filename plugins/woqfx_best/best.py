"""`best`: the algorithm and its options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from woqfx import Algorithm, Block, Fold, Layer, Learning, QTensor, Rates, option, registry
from woqfx_best.output import OutputError

#: Rates of groups' scales and of vectors, relative to themselves, where that of a rounded number is one cell.
_SCALES, _VECTORS = 0.5, 0.1


@dataclass(frozen=True)
class BestOptions:
    """What `best` can be asked."""

    iterations: int = option(48, "Steps of learning per block; 0 leaves what was rounded as it is. Time grows with it.")
    rate: float = option(0.01, "How far a number moves in a step at the start, as a share of a cell of its grid.")
    calls: int = option(1, "Batches of calibration data that a step looks at.")
    seed: int = option(0, "Decides the order in which batches are looked at.")


class Best(Algorithm):
    """AWQ's rescaling, GPTQ's rounding, then learned rounding of whole blocks: for quality, at the cost of time.

    What GPTQ rounded is a good start, at which each layer's own error is small. From there, gradients of the error of
    the block's output move the numbers that are rounded, the scales of groups, and norms and biases, as in SignRound
    (arXiv 2309.05516), with Adam for its sign. The target is what the original model gives there, so that a block also
    makes up for the errors of those before it. What is learned is kept only if the output comes nearer to that over
    all data.

    AWQ and GPTQ are asked for by name: who replaces them replaces them here too.
    """

    name = "best"
    Options = BestOptions
    needs_data = True

    @property
    def ordered(self) -> bool:
        """See `woqfx.Algorithm.ordered`."""
        return self._rounder.ordered

    @property
    def weighs_tokens(self) -> bool:
        """See `woqfx.Algorithm.weighs_tokens`."""
        return self._rounder.weighs_tokens

    @property
    def sequential(self) -> bool:
        """See `woqfx.Algorithm.sequential`."""
        return self._rounder.sequential

    @property
    def differentiates(self) -> bool:
        """See `woqfx.Algorithm.differentiates`."""
        return True

    @property
    def corrects_earlier(self) -> bool:
        """See `woqfx.Algorithm.corrects_earlier`."""
        return True

    def transform(self, block: Block) -> Iterator[Fold]:
        """See `woqfx.Algorithm.transform`."""
        yield from self._rescaler.transform(block)

    def round(self, layer: Layer) -> QTensor:
        """See `woqfx.Algorithm.round`."""
        return self._rounder.round(layer)

    def refine(self, block: Block, quantized: Mapping[str, QTensor]) -> Mapping[str, QTensor | Tensor]:
        """See `woqfx.Algorithm.refine`."""
        rate, every = self.options.rate, range(len(block.calls))
        rates = Rates(rate, rate * _SCALES, rate * _VECTORS)
        learning = Learning(block, quantized, OutputError(block), rates, self.options.seed)
        before = learning.error(every)
        for _ in learning.steps(every, self.options.iterations, self.options.calls):
            pass
        after = learning.error(every)
        block.note(learning={"before": before, "after": after, "kept": after < before})
        return learning.results() if after < before else {}

    @cached_property
    def _rescaler(self) -> Algorithm:
        return registry().algorithm("awq")()

    @cached_property
    def _rounder(self) -> Algorithm:
        return registry().algorithm("gptq")()
