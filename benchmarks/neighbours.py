"""How much of the machine others used while we measured (Linux)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
#: Of /proc/stat's first line: user, nice, system, irq, softirq, and what the host gave to other guests.
_BUSY = (0, 1, 2, 5, 6, 7)


class Neighbours:
    """Counts from when it is made. `own` are the processes that are not others, this one among them."""

    def __init__(self, own: Iterable[int]) -> None:
        self._own = [*own]
        self._since = self._now()

    def used(self) -> float:
        """How many processors others kept busy since then, on average: 0 on a quiet machine."""
        seconds, busy, own = (now - then for now, then in zip(self._now(), self._since, strict=True))
        return max(busy - own, 0.0) / seconds

    def _now(self) -> tuple[float, float, float]:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        busy = sum(int(fields[index]) for index in _BUSY)
        return time.monotonic(), busy / _TICKS, sum(map(_process_seconds, self._own))


def _process_seconds(pid: int) -> float:
    try:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except FileNotFoundError:  # it ended
        return 0.0
    return (int(user) + int(system)) / _TICKS
