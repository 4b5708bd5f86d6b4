"""Somebody's kernels in a process of their own, which times them when it is asked.

Runs in the peers' environments: imports numpy and nothing of woqfx. A request is a line of JSON on standard input, an
answer a line on standard output; `benchmarks.kernels` holds the other end. What libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
#: Multiplies, and gives the product [rows, n].
Call = Callable[[], Any]

_FEWEST_PAIRS = 40

#: The levels of nf4 (QLoRA, arXiv 2305.14314), ascending.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True)
class Problem:
    """A weight [n, k] to be stored in groups of `group` along k."""

    n: int
    k: int
    group: int

    @cached_property
    def weight(self) -> Floats:
        """Normal numbers, the same in every process."""
        return np.random.default_rng(0).standard_normal((self.n, self.k), dtype=np.float32) * np.float32(0.02)

    @cached_property
    def _groups(self) -> Floats:
        return self.weight.reshape(self.n, -1, self.group)

    @cached_property
    def int4(self) -> tuple[NDArray[np.int8], Floats]:
        """Codes -7..7 [n, k], and scales [n, k / group]."""
        return self._integers(7)

    @cached_property
    def int8(self) -> tuple[NDArray[np.int8], Floats]:
        """Codes -127..127 [n, k], and scales [n, k / group]."""
        return self._integers(127)

    def _integers(self, top: int) -> tuple[NDArray[np.int8], Floats]:
        scales = np.abs(self._groups).max(-1) / np.float32(top)
        codes = np.rint(self._groups / scales[..., None]).astype(np.int8)
        return codes.reshape(self.n, self.k), scales

    @cached_property
    def nf4(self) -> tuple[NDArray[np.uint8], Floats]:
        """Numbers of levels [n, k], and scales [n, k / group]."""
        scales = np.abs(self._groups).max(-1)
        levels = np.array(NF4, np.float32)
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, self._groups / scales[..., None])
        return codes.astype(np.uint8).reshape(self.n, self.k), scales


def activations(rows: int, k: int) -> Floats:
    """Normal numbers, the same in every process."""
    return np.random.default_rng(1).standard_normal((rows, k), dtype=np.float32)


@dataclass(frozen=True)
class Packed:
    """A weight as a kernel wants it: its size, and copies in memory of their own, each of which takes activations."""

    nbytes: int
    copy: Callable[[], Callable[[Floats], Call]]


@dataclass(frozen=True)
class Kernel:
    """One way in which a library multiplies. `pack` raises what it likes if it cannot take the weight."""

    name: str
    dtype: str
    compute_dtype: str
    pack: Callable[[Problem], Packed]


@dataclass
class _Ready:
    problem: Problem
    copies: Sequence[Callable[[Floats], Call]]
    calls: dict[int, list[Call]] = field(default_factory=dict)


class Worker:
    """Answers requests. `kernels` are told apart by their numbers."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self._kernels = kernels
        self._problem: Problem | None = None
        self._ready: dict[int, _Ready] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; `error` says why there is none."""
        do = request.pop("do")
        jobs: dict[str, Callable[..., dict[str, Any]]] = {
            "list": self._list,
            "pack": self._pack,
            "time": self._time,
            "compare": self._compare,
        }
        try:
            answer = jobs[do](**request)
        except Exception as error:  # a library's kernels fail in ways of their own, and that is an answer
            return {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
        return answer

    def _list(self) -> dict[str, Any]:
        return {"kernels": [(one.name, one.dtype, one.compute_dtype) for one in self._kernels]}

    def _pack(self, kernel: int, n: int, k: int, group: int, cache: int) -> dict[str, Any]:
        """Make ready a kernel, in as many copies as together are `cache` bytes. Another problem replaces the last."""
        problem = Problem(n, k, group)
        if problem != self._problem:
            self._problem = problem
            self._ready.clear()
        packed = self._kernels[kernel].pack(self._problem)
        count = 1 + -(-cache // packed.nbytes)
        self._ready[kernel] = _Ready(self._problem, [packed.copy() for _ in range(count)])
        return {"nbytes": packed.nbytes, "copies": count}

    def _time(self, kernel: int, rows: int, seconds: float) -> dict[str, Any]:
        """Call for this long; the seconds of each call, and before the first the relative error of the product."""
        ready = self._ready[kernel]
        if rows in ready.calls:
            return {"seconds": burst(ready.calls[rows], seconds)}
        x = activations(rows, ready.problem.k)
        ready.calls[rows] = [copy(x) for copy in ready.copies]
        for call in ready.calls[rows][:-1]:
            call()  # some prepare a weight when it is first used
        exact = x @ ready.problem.weight.T
        product = ready.calls[rows][-1]()
        if hasattr(product, "float"):  # a tensor of PyTorch: numpy knows no bfloat16
            product = product.float()
        distance = np.linalg.norm(np.asarray(product) - exact)
        return {"seconds": burst(ready.calls[rows], seconds), "distance": float(distance / np.linalg.norm(exact))}

    def _compare(self, kernel: int, other: int, rows: int, seconds: float) -> dict[str, Any]:
        """Two kernels that were timed before, call by call in turn; how many times the other's time the first takes.

        The median over pairs of neighbouring calls: who else is on the machine is so for both.
        """
        pair = [itertools.cycle(self._ready[which].calls[rows]) for which in (kernel, other)]
        ratios = list[float]()
        end = time.perf_counter() + seconds
        while len(ratios) < _FEWEST_PAIRS or time.perf_counter() < end:
            first = len(ratios) % 2  # each is as often the one that begins
            taken = [0.0, 0.0]
            for which in (first, 1 - first):
                taken[which] = _seconds_of(next(pair[which]))
            ratios.append(taken[0] / taken[1])
        return {"ratio": statistics.median(ratios), "pairs": len(ratios)}


def _seconds_of(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def burst(calls: Sequence[Call], seconds: float) -> list[float]:
    """Make the calls one after the other for this long; the seconds of each after the first."""
    taken = list[float]()
    turn = itertools.cycle(calls)
    next(turn)()
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        taken.append(_seconds_of(next(turn)))
    return taken


def serve(kernels: Callable[[int], Sequence[Kernel]]) -> None:
    """Answer until standard input ends. `kernels` makes them for a number of threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    threads = parser.parse_args().threads
    with Path("/dev/fd", str(os.dup(1))).open("w") as out:
        os.dup2(2, 1)
        worker = Worker(kernels(threads))
        for line in sys.stdin:
            print(json.dumps(worker.answer(json.loads(line))), file=out, flush=True)
