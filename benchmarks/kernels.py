"""Linear layers with quantized weights: woqfx and its peers in turn, on one machine, in one run.

    python -m benchmarks.kernels [--name NAME]

Each peer runs in a process and an environment of its own (`benchmarks.peers.kernel_peers` makes them once), packs the
same weight [4096, 4096] as its kernels want it, and is asked in turn for a burst of calls. Medians of single calls;
weights rotate among copies that together are four times the last-level cache; two threads. The machine's limits are
measured between the rounds. Writes `results/NAME.json` and `results/NAME.md`, and puts the latter into
`docs/benchmarks.md` if that has a place for it. `--group-size`, `--rows` and `--peer` measure a part.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cache import default_cache
from benchmarks.kernel_report import markdown
from benchmarks.machine import THREADS, whence
from benchmarks.neighbours import Neighbours
from benchmarks.peers.kernel_peers import INSTALLS, OWN, Peer, python_of
from benchmarks.peers.kernels_woqfx import BACKEND, KNOWN, STRANGER
from benchmarks.publish import name_argument, publish
from woqfx import Roofline, registry
from woqfx.bench import Figure, take_turns
from woqfx.roofline import last_level_cache

#: A product further from the exact one than 4 bits explain is none.
_FARTHEST = 0.25


@dataclass
class Entry:
    """A kernel of a peer, ready to be timed."""

    peer: Peer
    number: int
    group: int
    nbytes: int = 0
    error: str = ""
    distance: float = 0.0

    @property
    def names(self) -> tuple[str, str, str]:
        """Who, stored as what, computed in what."""
        return self.peer.kernels[self.number]

    def pack(self, shape: tuple[int, int]) -> None:
        """Let the peer pack the weight; `error` says why it did not."""
        n, k = shape
        cache = 4 * last_level_cache()
        self.nbytes = self._ask("pack", n=n, k=k, group=self.group, cache=cache).get("nbytes", 0)

    def burst(self, rows: int, seconds: float) -> list[float]:
        """The seconds of single calls; none once there was an error."""
        answer = self._ask("time", rows=rows, seconds=seconds)
        self.distance = max(self.distance, answer.get("distance", 0.0))
        if self.distance > _FARTHEST:
            self.error = f"its product is {self.distance:.2f} away from the exact one"
        found: list[float] = answer.get("seconds", [float("inf")])
        return found

    def compare(self, other: Entry, rows: int, seconds: float) -> float:
        """How many times as long as `other`, a kernel of the same peer, it takes: calls in turn, median of pairs."""
        ratio: float = self._ask("compare", other=other.number, rows=rows, seconds=seconds).get("ratio", float("nan"))
        return ratio

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer = self.peer.ask(do, kernel=self.number, **arguments)
        except RuntimeError as error:  # it crashed, and takes nobody along but itself
            answer = {"error": str(error)}
        self.error = self.error or answer.get("error", "")
        return answer


@dataclass
class Findings:
    """What came out; what is missing, and why; and how many processors others used meanwhile, at most.

    `strangers` says how many times as long a table of 16 levels takes that nobody has seen before.
    """

    figures: list[dict[str, Any]] = field(default_factory=list)
    strangers: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    others: float = 0.0


def measure(
    peers: Sequence[Peer], shape: tuple[int, int], group: int, rows: Sequence[int], seconds: float, findings: Findings
) -> None:
    """All kernels of all peers, in turn, into `findings`."""
    entries = [Entry(peer, number, group) for peer in peers for number in range(len(peer.kernels))]
    for entry in entries:
        _say(f"group {group}: packing {' '.join(entry.names)}")
        entry.pack(shape)
    for count in rows:
        ready = [entry for entry in entries if not entry.error]
        _say(f"group {group}, {count} rows: {len(ready)} kernels in turn")
        limits, neighbours = list[Roofline](), Neighbours([os.getpid(), *(peer.pid for peer in peers)])
        bursts: dict[int, Callable[[float], Sequence[float]]]
        bursts = {index: partial(entry.burst, count) for index, entry in enumerate(ready)}
        taken = take_turns(bursts, seconds, lambda limits=limits: limits.append(_limits()))  # type: ignore[misc]
        findings.others = max(findings.others, neighbours.used())
        middle = Roofline.middle(limits)
        for index, entry in enumerate(ready):
            if not entry.error:
                name, dtype, compute = entry.names
                figure = Figure(name, dtype, compute, group, "", shape, count, entry.nbytes, taken[index], middle)
                findings.figures.append({**figure.to_json(), "distance": entry.distance})
        for known, stranger in _strangers(ready):
            ratio = stranger.compare(known, count, seconds)
            case = {"compute_dtype": stranger.names[2], "group_size": group, "rows": count}
            if not stranger.error:
                findings.strangers.append({**case, "ratio": ratio})
    for entry in entries:
        if entry.error:
            name, dtype, compute = entry.names
            findings.missing[f"{name}, {dtype} in {compute}, group {group}"] = entry.error


def _strangers(entries: Sequence[Entry]) -> Iterator[tuple[Entry, Entry]]:
    """The stranger's table in each compute dtype, after the known one that it is compared with."""
    by_names = {(entry.peer, *entry.names): entry for entry in entries}
    for (peer, name, dtype, compute), entry in by_names.items():
        known = by_names.get((peer, name, KNOWN, compute))
        if dtype == STRANGER and known:
            yield known, entry


def _limits() -> Roofline:
    return registry().backend(BACKEND).roofline(THREADS)


def _say(what: str) -> None:
    print(what, file=sys.stderr)


def main() -> None:
    """Measure, and write the results."""
    everyone = [*OWN, *INSTALLS]
    parser = argparse.ArgumentParser(description="Time linear layers of woqfx and its peers in turn.")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="for the peers (%(default)s)")
    parser.add_argument("--shape", type=int, nargs=2, default=(4096, 4096), metavar=("N", "K"), help="%(default)s")
    parser.add_argument("--group-size", type=int, nargs="+", default=(32, 128), help="%(default)s")
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 8, 128), help="%(default)s")
    parser.add_argument("--peer", nargs="+", choices=everyone, default=everyone, help="only these (all)")
    parser.add_argument("--seconds", type=float, default=0.4, help="for each kernel and number of rows (%(default)s)")
    name_argument(parser, "kernels")
    arguments = parser.parse_args()
    findings, peers = Findings(), list[Peer]()
    try:
        for module in arguments.peer:
            try:
                peers.append(Peer(module, python_of(module, arguments.cache), THREADS))
            except (RuntimeError, subprocess.CalledProcessError) as error:
                findings.missing[module] = str(error)
        for group in arguments.group_size:
            measure(peers, tuple(arguments.shape), group, arguments.rows, arguments.seconds, findings)
    finally:
        for peer in peers:
            peer.close()
    result = {
        **whence(),
        "others": round(findings.others, 3),
        "installs": INSTALLS,
        "figures": findings.figures,
        "strangers": findings.strangers,
        "missing": findings.missing,
    }
    page = markdown(result)
    publish(arguments.name, result, page)
    print(page)


if __name__ == "__main__":
    main()
