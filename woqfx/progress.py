"""Showing progress: a bar on a terminal, lines for logs, JSON for machines, or nothing. A plugin like any other."""

from __future__ import annotations

import json
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TextIO, get_args

from woqfx import events
from woqfx.errors import SchemeError
from woqfx.hookspecs import hookimpl
from woqfx.plugins import registry

if TYPE_CHECKING:
    from rich.progress import TaskID

Progress = Literal["auto", "bar", "lines", "json", "none"]

#: Seconds between two lines of a run that has no blocks.
_EVERY = 10.0


@contextmanager
def showing(progress: Progress, stream: TextIO | None = None) -> Iterator[None]:
    """Show this thread's runs inside this block on `stream` (standard error).

    "auto" is a bar on a terminal, else nothing. However the block ends, the terminal is as it was.
    """
    stream = stream or sys.stderr
    if progress not in get_args(Progress):
        raise SchemeError(f"progress {progress!r} is not one of {', '.join(get_args(Progress))}")
    if progress == "auto":
        progress = "bar" if stream.isatty() else "none"
    if progress == "none":
        yield
        return
    kinds: dict[str, type[_Display]] = {"bar": _Bar, "lines": _Lines, "json": _Json}
    display = kinds[progress](stream)
    name = f"woqfx.progress.{id(display):x}"
    registry().register(display, name)
    try:
        yield
    finally:
        registry().unregister(name)
        display.close()


class _Display(ABC):
    """What hears events. Every plugin hears those of all runs, so another thread's are let pass."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    @hookimpl
    def woqfx_event(self, event: events.Event) -> None:
        if threading.get_ident() == self._thread:
            self.show(event)

    @abstractmethod
    def show(self, event: events.Event) -> None: ...

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let go of what is held."""

    def say(self, line: str) -> None:
        """Write a line."""
        print(line, file=self._stream, flush=True)


class _Json(_Display):
    """One JSON object a line for each event."""

    def show(self, event: events.Event) -> None:
        self.say(json.dumps(event.to_json()))


class _Lines(_Display):
    """A line for the start, for each block or each ten seconds, and for the end: what a log can take."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._runs: dict[str, _LineRun] = {}

    def show(self, event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            self._runs[event.run] = _LineRun(event)
            going_on = f", going on behind {event.resumed}" if event.resumed else ""
            self.say(f"{event.doing} {event.tensors} tensors{going_on}")
        elif (run := self._runs.get(event.run)) is None:
            return
        elif isinstance(event, events.TensorDone):
            if line := run.after(event):
                self.say(line)
        elif isinstance(event, events.BlockDone):
            run.said = time.monotonic()
            self.say(f"block {event.number} of {event.blocks}: {event.seconds:.1f} s, {event.memory / 1e9:.1f} GB")
        elif isinstance(event, events.RunFinished):
            self.say(f"{run.started.doing}: done in {event.seconds:.0f} s")


class _LineRun:
    """How far one run is, and when that was said last."""

    def __init__(self, started: events.RunStarted) -> None:
        self.started = started
        self.said = time.monotonic()
        self._weights = started.resumed_weights

    def after(self, event: events.TensorDone) -> str:
        """What to say now; nothing if a line is not old enough yet."""
        self._weights += event.weights
        if time.monotonic() - self.said < _EVERY:
            return ""
        self.said = time.monotonic()
        share = 100 * self._weights // max(1, self.started.weights)
        return f"{self.started.doing}: {event.done} of {event.tensors} tensors, {share} % of the weights"


class _Bar(_Display):
    """A bar for each run. It counts weights, not tensors: tensors differ in size by a factor of a million."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        super().__init__(stream)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[tensors]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            # Speeds of layers differ; the estimate shall look back over many.
            speed_estimate_period=120,
            console=Console(file=stream),
        )
        self._runs: dict[str, _Run] = {}

    def show(self, event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            self._bar.start()
            what = f"{event.doing}, going on" if event.resumed else event.doing
            task = self._bar.add_task(
                what,
                total=event.weights,
                completed=event.resumed_weights,
                tensors=f"{event.resumed}/{event.tensors} tensors",
                rate="",
            )
            self._runs[event.run] = _Run(task)
        elif isinstance(event, events.TensorDone) and event.run in self._runs:
            run = self._runs[event.run]
            run.add(event)
            tensors = f"{event.done}/{event.tensors} tensors"
            self._bar.update(run.task, advance=event.weights, tensors=tensors, rate=run.rate)
        elif isinstance(event, events.BlockStarted) and event.run in self._runs:
            self._bar.update(self._runs[event.run].task, description=f"block {event.number}/{event.blocks}")
        elif isinstance(event, events.BlockDone) and event.run in self._runs:
            run = self._runs[event.run]
            run.pace = f"{event.seconds:.1f} s a block, {event.memory / 1e9:.1f} GB"
            self._bar.update(run.task, rate=run.rate)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


class _Run:
    """The speed of one run so far."""

    def __init__(self, task: TaskID) -> None:
        self.task = task
        #: How long the last block took, and how much memory so far; empty if there are no blocks.
        self.pace = ""
        self._weights = 0
        self._seconds = 0.0

    def add(self, event: events.TensorDone) -> None:
        self._weights += event.weights
        self._seconds += event.seconds

    @property
    def rate(self) -> str:
        if self.pace:
            return self.pace
        return f"{self._weights / self._seconds / 1e6:.0f} M weights/s" if self._weights and self._seconds else ""
