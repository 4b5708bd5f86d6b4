"""From the engine's steps to the events that plugins see."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from woqfx import events
from woqfx.plugins import registry


@contextmanager
def reporting(
    source: str,
    weights: Mapping[str, int],
    out: Path | None,
    tensors: int,
    *,
    earlier: Collection[str],
    blocks: Sequence[str] = (),
    doing: str = "quantizing",
) -> Iterator[Report]:
    """Report the start of a run, and how it ended. An error goes on after it is reported.

    `weights` counts the numbers in each quantized weight, `blocks` are the names of those that the run goes through,
    and `earlier` names the tensors that a killed run has done. `doing` says what it is, in a word.
    """
    output = None if out is None else str(out)
    report = Report(weights, blocks, tensors, len(earlier))
    resumed = sum(weights.get(name, 0) for name in earlier)
    registry().emit(
        events.RunStarted(report.run, source, output, tensors, len(earlier), sum(weights.values()), resumed, doing)
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

    def __init__(self, weights: Mapping[str, int], blocks: Sequence[str], tensors: int, resumed: int) -> None:
        self.run = uuid.uuid4().hex[:8]
        self._weights, self._blocks, self._tensors, self._done = weights, blocks, tensors, resumed
        self._last = time.monotonic()

    def done(self, name: str, error: float | None) -> None:
        """One tensor is quantized, with this error, or carried over."""
        self._done += 1
        now = time.monotonic()
        weights = self._weights.get(name, 0)
        seconds, self._last = now - self._last, now
        registry().emit(events.TensorDone(self.run, name, self._done, self._tensors, weights, seconds, error))

    def block_started(self, name: str) -> None:
        """Work on a block begins."""
        registry().emit(events.BlockStarted(self.run, name, self._number(name), len(self._blocks)))

    def block_done(self, record: Mapping[str, Any]) -> None:
        """All tensors of a block are done; `record` is what the journal says of it."""
        errors = record["facts"].get("error", {})
        error = next(reversed(errors.values()), None)
        name, seconds, memory = record["name"], record["seconds"], record["memory"]
        number, blocks = self._number(name), len(self._blocks)
        registry().emit(events.BlockDone(self.run, name, number, blocks, seconds, memory, error))

    def _number(self, name: str) -> int:
        return 1 + self._blocks.index(name)

    def committed(self, nbytes: int) -> None:
        """All that was done so far, `nbytes` of output, is safe."""
        registry().emit(events.Committed(self.run, self._done, nbytes))
