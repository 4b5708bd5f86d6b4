"""From the engine's steps to the events that plugins see."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from woqfx import events
from woqfx.planning import Plan
from woqfx.plugins import registry
from woqfx.source import Source


@contextmanager
def reporting(
    source: Source, plan: Plan, out: Path | None, tensors: int, *, earlier: Collection[str]
) -> Iterator[Report]:
    """Report the start of a run, and how it ended. An error goes on after it is reported.

    `earlier` names the tensors that a killed run has done.
    """
    output = None if out is None else str(out)
    report = Report(plan, tensors, len(earlier))
    weights = {name: planned.weights for name, planned in plan.quantized.items()}
    resumed = sum(weights.get(name, 0) for name in earlier)
    registry().emit(
        events.RunStarted(report.run, source.label, output, tensors, len(earlier), sum(weights.values()), resumed)
    )
    start = time.monotonic()
    try:
        yield report
    except BaseException as error:
        registry().emit(events.RunFailed(report.run, f"{type(error).__name__}: {error}"))
        raise
    registry().emit(events.RunFinished(report.run, output, time.monotonic() - start))


class Report:
    """What one run tells of its progress."""

    def __init__(self, plan: Plan, tensors: int, resumed: int) -> None:
        self.run = uuid.uuid4().hex[:8]
        self._plan, self._tensors, self._done = plan, tensors, resumed
        self._last = time.monotonic()

    def done(self, name: str, error: float | None) -> None:
        """One tensor is quantized, with this relative error, or carried over."""
        self._done += 1
        now = time.monotonic()
        planned = self._plan.quantized.get(name)
        weights = planned.weights if planned else 0
        seconds, self._last = now - self._last, now
        registry().emit(events.TensorDone(self.run, name, self._done, self._tensors, weights, seconds, error))

    def committed(self, nbytes: int) -> None:
        """All that was done so far, `nbytes` of output, is safe."""
        registry().emit(events.Committed(self.run, self._done, nbytes))
