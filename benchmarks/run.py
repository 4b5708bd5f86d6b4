"""Run the suites, and name what became slower: `make bench`.

    python -m benchmarks.run [--check] [--update] [-k EXPRESSION]

What looks slower is measured again, up to three times, before it is believed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.compare import (
    TOLERANCE,
    Comparison,
    Measurement,
    better,
    compare,
    missing,
    read_baseline,
    read_report,
    write_baseline,
)
from benchmarks.machine import measure

FOLDER = Path(__file__).parent
BASELINE = FOLDER / "baseline.json"
RETRIES = 3
#: The load average above which the machine is not quiet. Two threads that wait for each other then mostly wait.
BUSY = 0.5


def run_suites(selection: Sequence[str]) -> dict[str, Measurement]:
    """Run benchmarks in a process of their own. `selection` are arguments of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", "--quiet", "--no-header", "--no-summary", *selection]
        command += [f"--benchmark-json={report}", "--benchmark-disable-gc", "--benchmark-quiet"]
        command += ["--benchmark-warmup=on", "--benchmark-warmup-iterations=1"]
        command += ["--benchmark-min-rounds=7", "--benchmark-max-time=0.3"]
        done = subprocess.run(command, cwd=FOLDER.parent, text=True, capture_output=True, check=False)
        if done.returncode or not report.exists():
            raise SystemExit(f"the benchmarks failed:\n{done.stdout}{done.stderr}")
        return read_report(json.loads(report.read_text()))


def measure_all(expression: str, baseline: dict[str, float]) -> list[Comparison]:
    """Run what the expression selects, and again what looks slower than the baseline."""
    measured = run_suites([str(FOLDER), *(["-k", expression] if expression else [])])
    for _ in range(RETRIES):
        suspects = [c.measured.name for c in compare(measured, baseline) if c.slower]
        if not suspects:
            break
        print(f"measuring {len(suspects)} again that look slower ...", file=sys.stderr)
        measured = better(
            measured, run_suites([f"{FOLDER.name}/{name.replace('::', '.py::', 1)}" for name in suspects])
        )
    return compare(measured, baseline)


def measure_twice() -> list[Comparison]:
    """Run all twice and keep the better: a baseline that noise lowered would hide what becomes slower."""
    return compare(better(run_suites([str(FOLDER)]), run_suites([str(FOLDER)])), {})


def table(comparisons: Iterable[Comparison]) -> Table:
    """The comparisons for people."""
    shown = Table(title="Share of what the machine can do at most", title_justify="left")
    shown.add_column("benchmark")
    for column in ("time", "share", "of", "baseline", "change"):
        shown.add_column(column, justify="right")
    for item in comparisons:
        measured, change = item.measured, item.change
        shown.add_row(
            escape(measured.name),
            _time(measured.seconds),
            f"{measured.share:.3g}",
            measured.kind,
            "new" if item.baseline is None else f"{item.baseline:.3g}",
            "" if change is None else f"{change:+.0%}",
            style="red" if item.slower else "green" if change is not None and change > TOLERANCE else "",
        )
    return shown


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def main() -> int:
    """Run what the command line asks for; the exit code is 1 if `--check` found something slower."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description="Measure, and compare with the baseline.")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a benchmark became slower")
    parser.add_argument("--update", action="store_true", help="write what was measured as the new baseline")
    parser.add_argument("-k", dest="expression", default="", help="run those whose names match, as pytest does")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="compare with this file (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.update and arguments.expression:
        parser.error("--update needs all benchmarks: leave out -k")

    machine = measure().describe()
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print("; ".join(f"{key}: {value}" for key, value in machine.items()), style="dim", highlight=False)
    if (load := os.getloadavg()[0]) > BUSY:
        console.print(f"load {load:.1f}: others are at work here, and what follows is worth little", style="yellow")
    baseline = {} if arguments.update else read_baseline(arguments.baseline)
    comparisons = measure_twice() if arguments.update else measure_all(arguments.expression, baseline)
    console.print(table(comparisons))
    if not arguments.expression and (gone := missing([c.measured.name for c in comparisons], baseline)):
        console.print(
            f"in the baseline but not measured (removed or renamed? then --update): {escape(', '.join(gone))}"
        )
    if arguments.update:
        write_baseline(arguments.baseline, {c.measured.name: c.measured for c in comparisons}, machine)
        console.print(f"wrote {arguments.baseline}")
        return 0
    slower = [c for c in comparisons if c.slower]
    for item in slower:
        console.print(f"slower by {-(item.change or 0):.0%}: {escape(item.measured.name)}", style="red")
    if not slower:
        console.print(f"nothing is slower than the baseline by more than {TOLERANCE:.0%}")
    return 1 if arguments.check and slower else 0


if __name__ == "__main__":
    sys.exit(main())
