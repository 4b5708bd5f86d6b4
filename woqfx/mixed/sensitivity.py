"""How much each way of storing a layer would harm the model, measured block by block on calibration data.

Of each layer alone, rounded to nearest as the plan has it, the harm to its block's output is measured: the mean over
tokens of |y' - y|^2 / |y|^2, the share of each token's hidden state that is wrong. (A share of its own size, for
that is what the next block's norm makes of it, and a few tokens of huge size would drown all others.) Any other way of
storing the layer is put in proportion by the error of the layer's own output, tr((W - W') M (W - W')^T) with M the
second moments of its inputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from woqfx.algorithm import Algorithm, Layer
from woqfx.blocks.activations import Store
from woqfx.blocks.block import Block
from woqfx.blocks.calibrated import CalibratedRun
from woqfx.blocks.composition import Composition
from woqfx.calibration import Calibration
from woqfx.memory import single_threaded
from woqfx.nearest import quantize_nearest
from woqfx.planned import Plan
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme
from woqfx.source import Source

#: Told after each block how many are behind, and of how many.
Report = Callable[[int, int], None]

#: Tokens that are looked at, and those of them on which blocks are run again for each layer.
TOKENS = 4096
_TRIED_TOKENS = 1024
_ROWS = 256  # of a weight, on which schemes are compared


def measure(
    source: Source,
    plan: Plan,
    calibration: Calibration,
    schemes: Mapping[str, Sequence[Scheme]],
    *,
    workers: int = 1,
    report: Report | None = None,
) -> dict[str, list[float]]:
    """For each layer in `schemes`, by its name, the cost of each of these schemes.

    `plan` is one that goes through blocks (its `blocks` are set). Layers that no data reached are left out.
    """
    survey = _Survey(schemes)
    composition = Composition(survey.name, (survey,))
    plan = replace(plan, request=replace(plan.request, propagate="float"))
    calibration = replace(calibration, batches=_first(calibration.batches, TOKENS))
    with single_threaded(), closing(Store(None)) as store:
        run = CalibratedRun(source, plan, composition, calibration, store, workers)
        for number, block in enumerate(plan.blocks, 1):
            for _ in run.quantize(block):
                pass
            if report:
                report(number, len(plan.blocks))
    return survey.costs


class _Survey(Algorithm):
    """Measures where others quantize: rounds to nearest, and changes nothing."""

    name = "survey"
    needs_data = True

    def __init__(self, schemes: Mapping[str, Sequence[Scheme]]) -> None:
        super().__init__()
        self._schemes = schemes
        #: By layer's name: for each expert (of a plain weight, the one), the error of its output with each scheme, and
        #: last with the plan's own.
        self._errors: defaultdict[str, dict[str, list[float]]] = defaultdict(dict)
        self.costs: dict[str, list[float]] = {}

    def round(self, layer: Layer) -> QTensor:
        """Note the error of the layer's output with each scheme."""
        name = f"{layer.name.partition('[')[0]}"
        schemes = self._schemes.get(name)
        if schemes and layer.inputs is not None:
            every = max(1, len(layer.weight) // _ROWS)
            rows = layer.weight[::every]
            moments, tokens = layer.inputs.moments, layer.inputs.tokens
            self._errors[name][layer.name] = [
                tokens * _output_error(rows, moments, scheme, layer.name) for scheme in (*schemes, layer.scheme)
            ]
        return quantize_nearest(layer.weight, layer.dtype, layer.scheme, name=layer.name)

    def refine(self, block: Block, quantized: Mapping[str, QTensor]) -> Mapping[str, QTensor | Tensor]:
        """Measure the harm of each layer to the block's output, and put the schemes in proportion."""
        few = len(_first(block.targets, _TRIED_TOKENS))
        block = replace(block, calls=block.calls[:few], targets=block.targets[:few])
        for own, layer in block.layers.items():
            errors = [sum(column) for column in zip(*self._errors.get(layer.name, {}).values(), strict=True)]
            if errors:
                *of_schemes, of_plan = errors
                harm = _harm(block, {own: quantized[own].dequantize()}) / of_plan if of_plan > 0 else 0.0
                self.costs[layer.name] = [harm * error for error in of_schemes]
        return {}


def _output_error(rows: Tensor, moments: Tensor, scheme: Scheme, name: str) -> float:
    q = quantize_nearest(rows, registry().dtype(scheme.dtype), scheme, name=name)
    off = q.dequantize() - rows.float()
    return float(((off @ moments) * off).sum(dtype=torch.float64))


def _harm(block: Block, weights: Mapping[str, Tensor]) -> float:
    def one(index: int) -> tuple[float, int]:
        with torch.no_grad():
            target = block.targets[index].float()
            off = block.run(block.calls[index], weights).float() - target
        size = target.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        share = off.square().sum(-1) / size
        return float(share.sum(dtype=torch.float64)), share.numel()

    pairs = block.map(one, range(len(block.calls)))
    return sum(share for share, _ in pairs) / max(1, sum(count for _, count in pairs))


def _first(batches: Sequence[Tensor], tokens: int) -> tuple[Tensor, ...]:
    """The first batches, until they hold so many tokens: those of [batch, length] or [batch, length, hidden]."""
    taken: list[Tensor] = []
    for batch in batches:
        if taken and tokens <= 0:
            break
        taken.append(batch)
        tokens -= batch.shape[0] * batch.shape[1]
    return tuple(taken)
