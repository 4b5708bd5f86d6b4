"""Learning a checkpoint's scales and vectors by the divergence of its predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from woqfx.format import StoredModel
from woqfx.learning.learning import Learning, Rates
from woqfx.learning.optimizer import Momentum
from woqfx.memory import single_threaded
from woqfx.qtensor import QTensor
from woqfx.source import Source
from woqfx.tuning.options import TuningOptions
from woqfx.tuning.point import Point
from woqfx.tuning.whole import PREFIX, Whole, whole

#: One sequence in so many is not learned from: what was learned is judged by them.
_HELD_OUT = 8
#: Sequences whose gradients make a step.
_BATCH = 2
#: How often in a pass over the data what was learned is judged, and kept on disk.
_JUDGED = 2

#: Told after each step: how many are done, and of how many.
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Split:
    """Which sequences, by number, are learned from, and which are held out to judge by."""

    learned: Sequence[int]
    held_out: Sequence[int]

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> Split:
        """For two sequences at least."""
        held_out = range(len(rows))[_HELD_OUT - 1 :: _HELD_OUT] or range(len(rows))[-1:]
        return cls([number for number in range(len(rows)) if number not in held_out], held_out)


def learn(
    stored: StoredModel,
    source: Source,
    rows: Sequence[Tensor],
    split: Split,
    options: TuningOptions,
    point: Point | None,
    keep: Callable[[Point], None],
    report: Report | None,
) -> Point:
    """Learn, going on from `point` if there is one; `keep` gets each new one."""
    steps = max(1, round(options.passes * len(split.learned) / _BATCH))
    between = max(1, len(split.learned) // (_BATCH * _JUDGED))
    if point is not None and point.steps == steps:
        return point
    workers = torch.get_num_threads()
    with single_threaded():
        model = whole(stored, source, rows, options.kind, workers)
        rates = Rates(codes=0, scales=options.rate, vectors=options.rate)
        learning = Learning(model.block, model.quantized, model.divergence, rates, options.seed, Momentum)
        if point is None:
            before = learning.error(split.held_out)
            point = Point(0, before, before, {}, {})
        else:
            learning.restore(point.state)
        for done in learning.steps(split.learned, steps, _BATCH, done=point.steps):
            if report:
                report(done, steps)
            if done % between == 0 or done == steps:
                point = _judged(point, done, learning, model, split.held_out)
                keep(point)
    return point


def _judged(last: Point, done: int, learning: Learning, model: Whole, held_out: Sequence[int]) -> Point:
    error = learning.error(held_out)
    if error < last.after:  # which NaN never is
        return Point(done, last.before, error, _as_stored(learning, model), learning.state())
    return Point(done, last.before, last.after, last.best, learning.state())


def _as_stored(learning: Learning, model: Whole) -> dict[str, Tensor]:
    """Scales and vectors, by the names of weights and vectors in the checkpoint."""
    best = {}
    for name, one in learning.results().items():
        stored = one.scales if isinstance(one, QTensor) else one.to(model.stored[name])
        assert isinstance(stored, Tensor)  # scales that are quantized themselves are not learned
        best[name.removeprefix(PREFIX)] = stored
    return best
