"""From the engine's steps to the events that plugins see."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from woqfx import events
from woqfx.done import Done
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

    def done(self, done: Done) -> None:
        """One tensor is quantized or carried over, perhaps the last one of a block."""
        self._done += 1
        now = time.monotonic()
        planned = self._plan.quantized.get(done.name)
        weights = planned.weights if planned else 0
        seconds, self._last = now - self._last, now
        registry().emit(events.TensorDone(self.run, done.name, self._done, self._tensors, weights, seconds, done.error))
        if done.block is not None:
            self._block_done(done.block)

    def block_started(self, name: str) -> None:
        """Work on a block begins."""
        registry().emit(events.BlockStarted(self.run, name, self._number(name), len(self._plan.blocks)))

    def _block_done(self, record: Mapping[str, Any]) -> None:
        errors = record["facts"].get("error", {})
        error = next(reversed(errors.values()), None)
        name, seconds, memory = record["name"], record["seconds"], record["memory"]
        number, blocks = self._number(name), len(self._plan.blocks)
        registry().emit(events.BlockDone(self.run, name, number, blocks, seconds, memory, error))

    def _number(self, name: str) -> int:
        return 1 + [block.name for block in self._plan.blocks].index(name)

    def committed(self, nbytes: int) -> None:
        """All that was done so far, `nbytes` of output, is safe."""
        registry().emit(events.Committed(self.run, self._done, nbytes))
