"""TEQ: the algorithm and its options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from woqfx import Algorithm, Block, Fold, Layer, QTensor, WoqfxError, data_fit, option, quantize_nearest, registry
from woqfx_teq.training import LanguageModelLoss, Objective, OutputError, Trained, Trainer


@dataclass(frozen=True)
class TEQOptions:
    """What TEQ can be asked."""

    objective: str = option("block", "What is trained for: block (each block's output), or lm (the model's own loss).")
    steps: int = option(24, "Steps of training, for each block or for the model.")
    learning_rate: float = option(0.02, "The largest rate at which logarithms of scales change.")
    warmup: float = option(0.1, "Share of the steps over which the rate rises, before it falls.")
    batch: int = option(1, "Calibration batches for each step.")
    start: str = option("awq", "Scales to begin from: awq, or identity.")
    clip: bool = option(True, "Clip each group's range where that lowers the output's error.")

    def __post_init__(self) -> None:
        for name, known in (("start", ("awq", "identity")), ("objective", ("block", "lm"))):
            if getattr(self, name) not in known:
                raise WoqfxError(f"option {name} of algorithm teq is {' or '.join(known)}, not {getattr(self, name)!r}")


class TEQ(Algorithm):
    """Trainable equivalent transformation (Cheng et al., arXiv 2310.10944), for every feed of a block.

    Scales are trained by gradients that go straight through the rounding on the real grid. The objective is the
    squared error of a block's output, for all feeds of the block together, or, with `objective="lm"`, the loss of the
    whole model, for all feeds of the model. Of all points that were measured the best is taken, and scales of 1 are
    among them. Rounding is as AWQ's.
    """

    name = "teq"
    Options = TEQOptions
    needs_data = True

    @property
    def differentiates(self) -> bool:
        """See `woqfx.Algorithm.differentiates`."""
        return True

    @property
    def surveys(self) -> bool:
        """See `woqfx.Algorithm.surveys`."""
        return bool(self.options.objective == "lm")

    def survey(self, model: Block) -> dict[str, Tensor]:
        """See `woqfx.Algorithm.survey`: the scales of each feed, by its name."""
        trained = self._train(model, LanguageModelLoss())
        return {feed.name: scale for feed, scale in zip(model.feeds, trained.scales, strict=True)}

    def transform(self, block: Block) -> Iterator[Fold]:
        """See `woqfx.Algorithm.transform`."""
        if self.surveys:
            scales = [block.surveyed.get(f"{block.name}.{feed.name}", torch.ones(feed.size)) for feed in block.feeds]
        else:
            trained = self._train(block, OutputError())
            block.note(teq_error_before=trained.error_before, teq_error=trained.error)
            scales = trained.scales
        for feed, scale in zip(block.feeds, scales, strict=True):
            if scale.shape == (feed.size,) and bool((scale != 1).any()):
                yield Fold(feed, scale, {"smallest": float(scale.min()), "largest": float(scale.max())})

    def _train(self, block: Block, objective: Objective) -> Trained:
        options = self.options
        return Trainer(block, objective, clip=options.clip).train(
            self._start(block),
            steps=options.steps,
            learning_rate=options.learning_rate,
            warmup=options.warmup,
            batch=options.batch,
        )

    def round(self, layer: Layer) -> QTensor:
        """See `woqfx.Algorithm.round`."""
        if layer.inputs is None or not layer.inputs.tokens or not self.options.clip:
            return super().round(layer)
        fit = data_fit(layer.inputs.moments, layer.dtype, layer.scheme)
        return quantize_nearest(layer.weight, layer.dtype, layer.scheme, name=layer.name, fit=fit)

    def _start(self, block: Block) -> list[Tensor]:
        """Logarithms of the scales to begin from."""
        found: dict[str, Tensor] = {}
        if self.options.start == "awq":
            awq = registry().algorithm("awq")
            found = {fold.feed.name: fold.scale.log() for fold in awq().transform(block)}
        return [found.get(feed.name, torch.zeros(feed.size)) for feed in block.feeds]
