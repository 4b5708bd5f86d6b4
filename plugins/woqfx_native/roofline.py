"""The limits of this machine, measured by loops in C++: plain reads, and arithmetic on registers alone."""

from __future__ import annotations

import statistics

from woqfx import Roofline
from woqfx.roofline import uncached_buffer
from woqfx_native import _core

_REPEATS = 5
_COMPUTES = (_core.Compute.fp32, _core.Compute.bf16, _core.Compute.int8)


def measure(threads: int) -> Roofline:
    """Measure with this many threads, on the instruction set that kernels use; takes a few tenths of a second."""
    isa = _core.best_isa()
    data = uncached_buffer().numpy()
    seconds = statistics.median(_core.read_seconds(data, isa, threads) for _ in range(_REPEATS))
    peaks = {
        c.name: statistics.median(_core.peak_operations(c, isa, threads) for _ in range(_REPEATS)) for c in _COMPUTES
    }
    return Roofline(data.nbytes / seconds, peaks, f"{isa.name} loops")
