"""What a run that looks at data will take of this machine, from sizes alone."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch

from woqfx.blocks.activations import IN_MEMORY

if TYPE_CHECKING:
    from woqfx.blocks.finding import BlockInfo
    from woqfx.planned import LayerPlan
    from woqfx.source import Source

#: Runs of a block for each batch: for statistics, for what the next block sees, and the algorithm's own few.
_RUNS = 3
#: Float32 copies of a block's weights at a time: as it is, rescaled, and rounded.
_COPIES = 3
#: The same of all weights of the blocks while an algorithm looks at the whole model; with their gradients.
_SURVEY_COPIES = 4
#: Runs that a pass back through a block costs, with the run before it.
_BACK = 3
#: Boundaries whose activations are held at a time: what goes in, what comes out, what should come out.
_BOUNDARIES = 3


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes, beside what reading, rounding and writing take."""

    seconds: float
    memory: int


def estimate(
    source: Source,
    blocks: Iterable[BlockInfo],
    plans: Iterable[LayerPlan],
    tokens: int,
    *,
    surveys: bool = False,
    corrects: bool = False,
    back: int = 0,
) -> Estimate:
    """For running these blocks on so many tokens. Experts count as if all tokens reached one in four of them.

    `surveys` says that an algorithm looks at the whole model first (`Algorithm.surveys`): it is then in memory in
    float32, with copies of the weights in its blocks, and the second moments of all their inputs. `corrects` says that
    the original's activations are held beside the others (`Algorithm.corrects_earlier`). `back` is how many
    tokens are, in all threads, on their way back through a block at a time, if an algorithm asks for gradients: what
    goes into each product is held for that, and what comes of it.
    """
    listed = list(plans)
    operations, largest = 0.0, 0.0
    runs = _RUNS + (_BACK if back else 0)
    survey = sum(4 * prod(info.shape) for info in source.tensors.values())
    for block in blocks:
        inside = [plan for plan in listed if block.holds(plan.layer.weight)]
        weights = sum(prod(plan.layer.shape) / (1 if len(plan.layer.shape) == 2 else 4) for plan in inside)
        moments = {plan.layer.shape[-1]: 4 * plan.layer.shape[-1] ** 2 * prod(plan.layer.shape[:-2]) for plan in inside}
        operations += 2 * tokens * (runs * weights + sum(moments.values()) / 8)
        size = sum(4 * prod(info.shape) for name, info in source.tensors.items() if block.holds(name))
        held = 4 * back * sum(_products(plan.layer.shape) for plan in inside)
        largest = max(largest, _COPIES * size + max(held, sum(moments.values())))
        survey += _SURVEY_COPIES * size + sum(moments.values())
    hidden = max((plan.layer.shape[-1] for plan in listed), default=0)
    boundaries = min(IN_MEMORY, (_BOUNDARIES + corrects) * 4 * tokens * hidden)
    return Estimate(operations / _rate(), int(max(largest + boundaries, survey if surveys else 0)))


def _products(shape: tuple[int, ...]) -> float:
    """Numbers that one token brings to a weight [..., N, K] and takes from it."""
    return sum(shape[-2:]) * (prod(shape[:-2]) / 4 if len(shape) > 2 else 1)


def _rate() -> float:
    """Operations a second in a matrix product, the best of three."""
    one = torch.ones(512, 512)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(one, one)
        times.append(time.perf_counter() - start)
    return 2 * 512**3 / min(times)
