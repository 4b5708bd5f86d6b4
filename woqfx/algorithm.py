"""Algorithms: how a weight lands on its grid."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from woqfx.blocks.folding import fold
from woqfx.dtype import DType
from woqfx.nearest import quantize_nearest
from woqfx.options import NoOptions
from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme

if TYPE_CHECKING:
    from woqfx.blocks.block import Block, Feed


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the calibration data shows of the inputs of one weight, summed over `tokens` rows x [K].

    `moments` float32 [K, K] is the mean of the outer products x x^T: GPTQ's Hessian is twice that, and the mean square
    error of the output of a row w of weights that becomes w' is (w - w') moments (w - w')^T. `mean` and `mean_abs`,
    float32 [K], are the means of x and |x|. All are zero if no token was seen. For an algorithm that asks for it
    (`Algorithm.weighs_tokens`), the mean that `moments` is counts each token by its importance.
    """

    tokens: int
    moments: Tensor
    mean: Tensor
    mean_abs: Tensor


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight to quantize: [..., N, K] in the model's own float type, its scheme, and its grid.

    `inputs` is what the calibration data shows, for an algorithm that needs data; then the weight is one [N, K]: of
    a stack, one expert at a time. It is None without data, and for weights outside the repeated blocks.
    `note(alpha=0.5)` tells the report what was chosen for this weight: numbers, texts, or lists of them.
    """

    name: str
    weight: Tensor
    scheme: Scheme
    dtype: DType
    inputs: Statistics | None = None
    note: Callable[..., None] = lambda **facts: None


@dataclass(frozen=True, eq=False)
class Fold:
    """A function-preserving rescaling: what `feed` names is divided by `scale`, and what it feeds multiplied by it.

    `scale` float32 [feed.size], positive. `facts` go into the report.
    """

    feed: Feed
    scale: Tensor
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def apply(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters that it changes, as they become. Differentiable in the scale."""
        return fold(self.feed, self.scale, parameters)


class Algorithm(ABC):
    """A recipe for turning weights into codes, in up to three steps, each with a default that does nothing special.

    `transform` rescales a block of the model without changing what it computes (AWQ, TEQ); `round` lands each weight
    on its grid (GPTQ; by default the nearest point); `refine` improves a whole block after rounding. Algorithms
    compose: of "awq+gptq", every part transforms in turn, the last part that has a `round` of its own rounds, and
    every part refines in turn.

    It knows tensors: no disk, no device, no progress bar. An instance holds the options of one run, and may be
    asked from several threads at once. The same inputs and options must give the same bytes, whatever the number
    of threads: sums over data go through `Block.map` or an order of their own.
    """

    #: The name that the command line uses.
    name: ClassVar[str]
    #: A frozen dataclass. Its fields are the command line's flags; `option(...)` gives them their help.
    Options: ClassVar[type[Any]] = NoOptions
    #: Whether it looks at calibration data. Without, `round` is all that is asked of it.
    needs_data: ClassVar[bool] = False

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    @property
    def ordered(self) -> bool:
        """Whether `round` gives each weight an input permutation (`QTensor.order`); sizes are planned by this."""
        return False

    @property
    def sequential(self) -> bool:
        """Whether weights of a block are rounded in the order of their use, each seeing what quantized ones feed it."""
        return False

    @property
    def weighs_tokens(self) -> bool:
        """Whether in the moments that `round` gets, tokens count by how much the block's output depends on them."""
        return False

    @property
    def differentiates(self) -> bool:
        """Whether `transform` or `refine` runs blocks for gradients: then a plan counts the memory that these take."""
        return False

    @property
    def corrects_earlier(self) -> bool:
        """Whether `refine` shall make up for what rounding the blocks before has done, too.

        `Block.targets` are then what the original model gives there; else what the block would give in float for the
        same calls. The engine keeps the original's activations beside those of the quantized blocks for it.
        """
        return False

    @property
    def surveys(self) -> bool:
        """Whether `survey` shall be asked before the first block. The whole model must then fit into memory."""
        return False

    def survey(self, model: Block) -> Mapping[str, Tensor]:
        """Look at the whole float model, as one block, before the first block; see `woqfx.blocks.survey`.

        What is returned is given to `transform` as `Block.surveyed`. It must come out the same each time: a run that
        goes on after a kill asks again.
        """
        return {}

    def transform(self, block: Block) -> Iterable[Fold]:
        """Choose rescalings for a block in float; the engine verifies and applies each before it asks for the next."""
        return ()

    def round(self, layer: Layer) -> QTensor:
        """Quantize one weight. The default takes the nearest point of the grid for every weight."""
        return quantize_nearest(layer.weight, layer.dtype, layer.scheme, name=layer.name)

    def refine(self, block: Block, quantized: Mapping[str, QTensor]) -> Mapping[str, QTensor | Tensor]:
        """Improve a quantized block: what shall change of its parameters, by their names in the block.

        `block` holds the (transformed) float weights and the data; `quantized` what `round` made. Weights stay in
        their scheme; other parameters (biases, norms) may change too, in shape and type as they are.
        """
        return {}

    def __repr__(self) -> str:
        return f"<algorithm {self.name}: {self.options}>"
