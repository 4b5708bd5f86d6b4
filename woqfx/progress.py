"""Showing progress: a bar on a terminal, JSON lines for machines, or nothing. A plugin like any other."""

from __future__ import annotations

import json
import sys
import threading
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

Progress = Literal["auto", "bar", "json", "none"]


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
    display = _Bar(stream) if progress == "bar" else _Lines(stream)
    name = f"woqfx.progress.{id(display):x}"
    registry().register(display, name)
    try:
        yield
    finally:
        registry().unregister(name)
        display.close()


class _Display(ABC):
    """What hears events. Every plugin hears those of all runs, so another thread's are let pass."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    @hookimpl
    def woqfx_event(self, event: events.Event) -> None:
        if threading.get_ident() == self._thread:
            self.show(event)

    @abstractmethod
    def show(self, event: events.Event) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class _Lines(_Display):
    """One JSON object a line for each event."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def show(self, event: events.Event) -> None:
        print(json.dumps(event.to_json()), file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is held."""


class _Bar(_Display):
    """A bar for each run. It counts weights, not tensors: tensors differ in size by a factor of a million."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        super().__init__()
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
