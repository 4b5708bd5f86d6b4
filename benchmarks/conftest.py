"""What the suites share: `timed`, which runs a function under pytest-benchmark and notes the limit it is held to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import pytest
import torch

from benchmarks.machine import THREADS, Machine, measure

Peak = Literal["fp32", "bf16"]


class Timed(Protocol):
    """Time `function`, which moves `moved` bytes, or does `flops` operations of the kind whose peak is `peak`."""

    def __call__(  # noqa: D102 - the class says it
        self, function: Callable[[], Any], *, moved: int | None = None, flops: int | None = None, peak: Peak = "fp32"
    ) -> None: ...


class _Yardsticks:
    """The machine as measured lately: what else runs on it changes within seconds."""

    _SECONDS = 5.0

    def __init__(self) -> None:
        self._at: float | None = None

    def now(self) -> Machine:
        if self._at is None or time.monotonic() - self._at > self._SECONDS:
            self._machine = measure()
            self._at = time.monotonic()
        return self._machine


@pytest.fixture(scope="session", autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    if not request.config.getoption("benchmark_disable"):
        torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def yardsticks() -> _Yardsticks:
    """What the machine can do at most."""
    return _Yardsticks()


@pytest.fixture
def timed(benchmark: Any, yardsticks: _Yardsticks) -> Timed:
    """See `Timed`."""

    def run(
        function: Callable[[], Any], *, moved: int | None = None, flops: int | None = None, peak: Peak = "fp32"
    ) -> None:
        if benchmark.enabled:
            machine = yardsticks.now()
            fastest = (machine.bf16_peak or machine.fp32_peak) if peak == "bf16" else machine.fp32_peak
            work, limit = (moved, machine.read_bandwidth) if flops is None else (flops, fastest)
            kind = "bandwidth" if flops is None else f"{peak} peak"
            benchmark.extra_info.update(work=work, limit=limit, kind=kind)
        benchmark(function)

    return run
