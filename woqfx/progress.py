"""Showing progress: a bar on a terminal, JSON lines for machines, or nothing. A plugin like any other."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

from woqfx import events
from woqfx.hookspecs import hookimpl
from woqfx.plugins import registry

Progress = Literal["auto", "bar", "json", "none"]

_NAME = "woqfx.progress"


@contextmanager
def showing(progress: Progress, stream: TextIO | None = None) -> Iterator[None]:
    """Show the runs inside this block on `stream` (standard error). "auto" is a bar on a terminal, else nothing."""
    stream = stream or sys.stderr
    if progress == "auto":
        progress = "bar" if stream.isatty() else "none"
    if progress == "none":
        yield
        return
    display = _Bar(stream) if progress == "bar" else _Lines(stream)
    name = f"{_NAME}.{id(display):x}"
    registry().register(display, name)
    try:
        yield
    finally:
        registry().unregister(name)
        display.close()


class _Lines:
    """One JSON object a line for each event."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @hookimpl
    def woqfx_event(self, event: events.Event) -> None:
        print(json.dumps(event.to_json()), file=self._stream, flush=True)  # noqa: T201

    def close(self) -> None:
        """Nothing is held."""


class _Bar:
    """A bar with the number of tensors, the speed and the time left."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(file=stream),
        )
        self._tasks: dict[str, tuple[int, int, float]] = {}

    @hookimpl
    def woqfx_event(self, event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            self._bar.start()
            task: TaskID = self._bar.add_task("quantizing", total=event.tensors, completed=event.resumed, rate="")
            self._tasks[event.run] = (task, 0, 0.0)
        elif isinstance(event, events.TensorDone) and event.run in self._tasks:
            task, weights, seconds = self._tasks[event.run]
            weights, seconds = weights + event.weights, seconds + event.seconds
            self._tasks[event.run] = (task, weights, seconds)
            rate = f"{weights / seconds / 1e6:.0f} M weights/s" if seconds else ""
            self._bar.update(task, completed=event.done, rate=rate)  # type: ignore[arg-type]

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()
