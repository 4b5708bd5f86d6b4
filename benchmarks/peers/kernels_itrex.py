"""qbits, the kernels of Intel Extension for Transformers 1.4.2.

Its own `int4_clip` lets the sign of a group's scale choose the side that reaches -8, unlike woqfx's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from intel_extension_for_transformers import qbits  # type: ignore[import-not-found]

from benchmarks.peers.kernel_worker import Call, Floats, Kernel, Packed, Problem, serve

_SCALES = "fp32"  # its default


def kernels(threads: int) -> Sequence[Kernel]:
    """Its pairs of weight and compute dtype that run without AMX."""
    torch.set_num_threads(threads)
    qbits.set_qbits_threads(threads)
    pairs = [("int4_clip", "fp32"), ("int4_clip", "int8"), ("nf4", "fp32"), ("int8", "fp32"), ("int8", "int8")]
    return [Kernel("ITREX", dtype, compute, partial(_pack, dtype, compute)) for dtype, compute in pairs]


def _pack(dtype: str, compute: str, problem: Problem) -> Packed:
    weight = torch.from_numpy(problem.weight)
    blob = qbits.quantize_to_packed_weight(weight, True, problem.group, compute, dtype, _SCALES, False)
    return Packed(blob.nbytes, lambda: partial(_bind, blob.clone(), dtype, compute, problem.n))


def _bind(blob: torch.Tensor, dtype: str, compute: str, n: int, x: Floats) -> Call:
    rows, y, no_bias = torch.from_numpy(x), torch.empty(len(x), n), torch.empty(0)

    def call() -> torch.Tensor:
        qbits.woq_linear(rows, blob, no_bias, y, compute, dtype, _SCALES, False)
        return y

    return call


if __name__ == "__main__":
    serve(kernels)
