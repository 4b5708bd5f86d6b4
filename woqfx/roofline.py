"""What this machine can do at most, and how near to that something came.

The roofline model (Williams, Waterman and Patterson, CACM 52-4, 2009): work takes at least as long as reading its bytes
from memory, and at least as long as its operations at the arithmetic's peak.
"""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from woqfx import memory

_REPEATS = 7
_SIDE = 1024


@dataclass(frozen=True)
class Roofline:
    """Limits of this machine: bytes read a second, and operations a second by compute dtype.

    A multiply-add counts as two operations. `how` says what measured them.
    """

    read_bandwidth: float
    peaks: Mapping[str, float]
    how: str

    def least_seconds(self, nbytes: int, operations: int, compute_dtype: str) -> float:
        """The least time for this work. The peak of an unknown compute dtype is no limit."""
        return max(nbytes / self.read_bandwidth, self._arithmetic(operations, compute_dtype))

    def bound(self, nbytes: int, operations: int, compute_dtype: str) -> str:
        """Which of the two limits this work meets first: `memory` or `arithmetic`."""
        return "memory" if nbytes / self.read_bandwidth >= self._arithmetic(operations, compute_dtype) else "arithmetic"

    @staticmethod
    def middle(several: Sequence[Roofline]) -> Roofline:
        """The medians of what was measured several times, by the same means: neighbours use the same memory."""
        peaks = {name: statistics.median(one.peaks[name] for one in several) for name in several[0].peaks}
        return Roofline(statistics.median(one.read_bandwidth for one in several), peaks, several[0].how)

    def _arithmetic(self, operations: int, compute_dtype: str) -> float:
        peak = self.peaks.get(compute_dtype)
        return operations / peak if peak else 0.0


def measured_with_torch(threads: int) -> Roofline:
    """The limits as PyTorch reaches them: sums for the bandwidth, products of square matrices for the peaks.

    PyTorch multiplies int8 in a kernel of its own on some processors only; where it is no faster than float32, that
    is given.
    """
    with memory.threads(threads):
        data = uncached_buffer()
        words = data.view(torch.float32)
        fp32, bf16 = _product(torch.float32), _product(torch.bfloat16)
        ones = torch.ones(_SIDE, _SIDE, dtype=torch.int8)
        int8 = 2 * _SIDE**3 / median_seconds(lambda: torch._int_mm(ones, ones))
        peaks = {"fp32": fp32, "bf16": max(bf16, fp32), "int8": max(int8, fp32)}
        return Roofline(data.nbytes / median_seconds(words.sum), peaks, "PyTorch")


def _product(dtype: torch.dtype) -> float:
    ones = torch.ones(_SIDE, _SIDE, dtype=dtype)
    return float(2 * _SIDE**3 / median_seconds(lambda: ones @ ones))


def median_seconds(work: Callable[[], object], repeats: int = _REPEATS) -> float:
    """The median time of `work` over some repeats, after one to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def uncached_buffer() -> Tensor:
    """Bytes, uint8 [n], that no cache can hold: four times the last-level cache, at least 256 MiB.

    In huge pages where the system has them, without which looking up addresses takes longer than reading.
    """
    memory = mmap.mmap(-1, max(4 * last_level_cache(), 256 << 20))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).fill_(1)


def last_level_cache() -> int:
    """The size in bytes of the largest cache of the first processor, 0 if the system (Linux) does not say."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((_size(path.read_text()) for path in sizes), default=0)


def _size(text: str) -> int:
    """Read the kernel's `32768K`."""
    number = text.strip()
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(number[:-1]) * units[number[-1]] if number[-1] in units else int(number)
