"""What this machine can do at most, measured now: the yardsticks that benchmarks are divided by.

Medians, not best times: a benchmark is measured by its median too, and both lose alike to whatever else runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from woqfx.cpu import this_cpu
from woqfx.roofline import last_level_cache, median_seconds

#: Threads that benchmarks and yardsticks use: what the smallest machine of today has.
THREADS = min(2, os.cpu_count() or 1)

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
            "features": telling_features(),
            "threads": str(THREADS),
            "read": f"{self.read_bandwidth / 1e9:.1f} GB/s",
            "copy": f"{self.copy_bandwidth / 1e9:.1f} GB/s",
            "fp32": f"{self.fp32_peak / 1e9:.0f} GFLOP/s",
            "bf16": bf16,
        }


def whence() -> dict[str, str | int]:
    """What a result says of when and on what it was measured."""
    cpu = this_cpu()
    today = datetime.now(UTC).date().isoformat()
    return {"date": today, "processor": cpu.model, "features": telling_features(), "threads": THREADS}


def telling_features() -> str:
    """Which of the features that decide about kernels this processor has."""
    return " ".join(name for name in _TELLING if this_cpu().has(name))


def measure() -> Machine:
    """Measure this machine with `THREADS` threads, in about a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        data, target = torch.ones(_buffer_bytes() // 4), torch.empty(_buffer_bytes() // 4)
        return Machine(
            read_bandwidth=data.nbytes / median_seconds(data.sum),
            copy_bandwidth=2 * data.nbytes / median_seconds(lambda: target.copy_(data)),
            fp32_peak=_product_peak(torch.float32),
            bf16_peak=_product_peak(torch.bfloat16) if _BF16 & this_cpu().features else None,
        )
    finally:
        torch.set_num_threads(before)


def _product_peak(dtype: torch.dtype) -> float:
    left, right = torch.ones(_SIDE, _SIDE, dtype=dtype), torch.ones(_SIDE, _SIDE, dtype=dtype)
    return float(2 * _SIDE**3 / median_seconds(lambda: left @ right))


def _buffer_bytes() -> int:
    """Four times the last-level cache, so that little of a pass is left for the next; at least 256 MiB."""
    return max(4 * last_level_cache(), 256 << 20)


if __name__ == "__main__":
    for key, value in measure().describe().items():
        print(f"{key:12}{value}")
