"""Run a command and say what it took: time, processor time, memory, and when it said what.

Import nothing large here, nor in a program that uses this: Linux counts the memory that a child shared with its parent
before it became another program as the child's peak.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """What a command took. `lines` is what it wrote to standard error, each with the seconds since its start."""

    seconds: float
    user_seconds: float
    system_seconds: float
    peak_bytes: int
    lines: tuple[tuple[float, str], ...] = field(repr=False)


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    """Run `command` to its end; raises `RuntimeError` with its last lines if it fails."""
    start = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8"
    )
    assert process.stderr is not None
    with process.stderr:
        lines = tuple((time.monotonic() - start, line.rstrip("\n")) for line in process.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = "\n".join(line for _, line in lines[-20:])
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said}")
    return Run(seconds, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024, lines)


def warm(path: Path) -> None:
    """Read a file, so that it is in the page cache."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 22)
        while file.readinto(buffer):
            pass
