"""Shares of what the machine can do, and what became slower since the baseline.

A benchmark's share is its work (bytes moved, or floating-point operations) divided by its median time and by what the
machine did of the same kind at most, measured moments before. It has no unit, so a baseline that was written on one day
can be held against a run on another, when the machine had less or more to give.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: A share that falls below the baseline's by more than this part of it counts as slower.
TOLERANCE = 0.15


@dataclass(frozen=True)
class Measurement:
    """One benchmark: `kind` says what its share is of (`bandwidth`, `fp32 peak`, `bf16 peak`)."""

    name: str
    seconds: float
    share: float
    kind: str


@dataclass(frozen=True)
class Comparison:
    """A measurement beside the baseline's share; None if the baseline does not have it."""

    measured: Measurement
    baseline: float | None

    @property
    def change(self) -> float | None:
        """How much faster it is than the baseline, as a part of it: -0.2 is a fifth less of the machine's limit."""
        return None if self.baseline is None else self.measured.share / self.baseline - 1

    @property
    def slower(self) -> bool:
        """Whether it fell by more than the tolerance."""
        return self.change is not None and self.change < -TOLERANCE


def read_report(report: Mapping[str, Any]) -> dict[str, Measurement]:
    """The measurements in what `pytest --benchmark-json` wrote, by name."""
    measured = {}
    for entry in report["benchmarks"]:
        name = entry["fullname"].removeprefix("benchmarks/").replace(".py::", "::")
        extra, seconds = entry["extra_info"], entry["stats"]["median"]
        measured[name] = Measurement(name, seconds, extra["work"] / seconds / extra["limit"], extra["kind"])
    return measured


def better(one: Mapping[str, Measurement], other: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """For each name the larger share: what else runs on a machine makes a benchmark slower, never faster."""
    merged = dict(one)
    for name, measurement in other.items():
        if name not in merged or measurement.share > merged[name].share:
            merged[name] = measurement
    return merged


def compare(measured: Mapping[str, Measurement], baseline: Mapping[str, float]) -> list[Comparison]:
    """Each measurement beside the baseline's, in the order of their names."""
    return [Comparison(measured[name], baseline.get(name)) for name in sorted(measured)]


def missing(measured: Iterable[str], baseline: Iterable[str]) -> list[str]:
    """What the baseline has and the run has not: benchmarks that were removed or renamed."""
    return sorted(set(baseline) - set(measured))


def read_baseline(path: Path) -> dict[str, float]:
    """The baseline's shares by name; none if there is no file."""
    return dict(json.loads(path.read_text())["shares"]) if path.exists() else {}


def write_baseline(path: Path, measured: Mapping[str, Measurement], machine: Mapping[str, str]) -> None:
    """Write shares, to four digits, and the machine for people to read."""
    shares = {name: float(f"{measured[name].share:.4g}") for name in sorted(measured)}
    path.write_text(json.dumps({"machine": dict(machine), "shares": shares}, indent=1) + "\n")
