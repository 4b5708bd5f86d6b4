"""What this machine can do at most, measured now: the yardsticks that benchmarks are divided by.

Medians, not best times: a benchmark is measured by its median too, and both lose alike to whatever else runs.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from woqfx.cpu import this_cpu

#: Threads that benchmarks and yardsticks use: what the smallest machine of today has.
THREADS = min(2, os.cpu_count() or 1)

_REPEATS = 7
_SIDE = 1024
#: The features that decide which kernels can run, by the names that Linux uses.
_TELLING = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "bf16", "i8mm", "sve"),
)
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Machine:
    """Bandwidths in bytes a second, peaks in floating-point operations a second (a multiply-add counts as two).

    `bf16_peak` is None where the processor has no bfloat16 arithmetic.
    """

    read_bandwidth: float
    copy_bandwidth: float
    fp32_peak: float
    bf16_peak: float | None

    def describe(self) -> dict[str, str]:
        """The processor and its limits, for people."""
        cpu = this_cpu()
        bf16 = "none" if self.bf16_peak is None else f"{self.bf16_peak / 1e9:.0f} GFLOP/s"
        return {
            "processor": cpu.model,
            "features": " ".join(name for name in _TELLING if cpu.has(name)),
            "threads": str(THREADS),
            "read": f"{self.read_bandwidth / 1e9:.1f} GB/s",
            "copy": f"{self.copy_bandwidth / 1e9:.1f} GB/s",
            "fp32": f"{self.fp32_peak / 1e9:.0f} GFLOP/s",
            "bf16": bf16,
        }


def measure() -> Machine:
    """Measure this machine with `THREADS` threads, in about a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        data, target = torch.ones(_buffer_bytes() // 4), torch.empty(_buffer_bytes() // 4)
        return Machine(
            read_bandwidth=data.nbytes / _median_seconds(data.sum),
            copy_bandwidth=2 * data.nbytes / _median_seconds(lambda: target.copy_(data)),
            fp32_peak=_product_peak(torch.float32),
            bf16_peak=_product_peak(torch.bfloat16) if _BF16 & this_cpu().features else None,
        )
    finally:
        torch.set_num_threads(before)


def _product_peak(dtype: torch.dtype) -> float:
    left, right = torch.ones(_SIDE, _SIDE, dtype=dtype), torch.ones(_SIDE, _SIDE, dtype=dtype)
    return float(2 * _SIDE**3 / _median_seconds(lambda: left @ right))


def _median_seconds(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _buffer_bytes() -> int:
    """Four times the last-level cache, so that little of a pass is left for the next; at least 256 MiB."""
    sizes = [_size(path.read_text()) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(4 * max(sizes, default=0), 256 << 20)


def _size(text: str) -> int:
    """Read the kernel's `32768K`."""
    number = text.strip()
    return int(number[:-1]) << 10 if number.endswith("K") else int(number[:-1]) << 20


if __name__ == "__main__":
    for key, value in measure().describe().items():
        print(f"{key:12}{value}")
