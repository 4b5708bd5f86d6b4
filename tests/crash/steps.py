"""Stand-ins for the calls of `os` that change a disk: they count, and kill or fail at a given one.

They are there inside a `with` block, for the whole process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

#: What `woqfx.disk.durable`, the journal, the writer and the output are made of.
STEPS = ("open", "write", "ftruncate", "fdatasync", "fsync", "replace", "unlink", "mkdir", "rmdir")

Act = Callable[[str, Callable[..., Any], tuple[Any, ...]], None]


class Steps:
    """Counts steps. At number `at`, `act` is called before the step is taken; it is given the step and its arguments.

    `watch` sees every step after it was taken, with its result.
    """

    def __init__(self, at: int | None = None, act: Act | None = None, watch: Act | None = None) -> None:
        self.taken: list[str] = []
        self._at, self._act, self._watch = at, act, watch
        self._real = {step: getattr(os, step) for step in STEPS}

    def __enter__(self) -> Self:
        for step, real in self._real.items():
            setattr(os, step, self._stand_in(step, real))
        return self

    def __exit__(self, *_: object) -> None:
        for step, real in self._real.items():
            setattr(os, step, real)

    def _stand_in(self, step: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*arguments: Any, **named: Any) -> Any:
            number = len(self.taken)
            self.taken.append(step)
            if number == self._at and self._act is not None:
                self._act(step, real, arguments)
            result = real(*arguments, **named)
            if self._watch is not None:
                self._watch(step, lambda: result, arguments)
            return result

        return stand_in


def die(*_: Any) -> None:
    """As `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_middle(step: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Write half of what was to be written, then die."""
    if step == "write":
        fd, data = arguments
        real(fd, data[: len(data) // 2])
    die()


def fail(number: int) -> Act:
    """Have the step fail with this `errno`; a write that finds the disk full has written half."""

    def act(step: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if step == "write":
            fd, data = arguments
            real(fd, data[: len(data) // 2])
        raise OSError(number, os.strerror(number))

    return act
