"""auto-round's kernel library, through its function `woqgemm`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import auto_round_kernel  # type: ignore[import-not-found]
import torch

from benchmarks.peers.kernel_worker import Call, Floats, Kernel, Packed, Problem, serve


def kernels(threads: int) -> Sequence[Kernel]:
    """Its integers. Where it lacks the instructions for a compute dtype, it says nothing and computes otherwise."""
    torch.set_num_threads(threads)
    pairs = [("int4", "fp32"), ("int4", "bf16"), ("int4", "int8"), ("int8", "fp32"), ("int8", "int8")]
    return [Kernel("auto-round-lib", dtype, compute, partial(_pack, dtype, compute)) for dtype, compute in pairs]


def _pack(dtype: str, compute: str, problem: Problem) -> Packed:
    codes, scales = (torch.from_numpy(part).T.contiguous() for part in getattr(problem, dtype))
    zeros = torch.zeros(scales.shape, dtype=torch.int8)
    kind = (problem.group, compute, dtype, "fp32", False)
    blob = auto_round_kernel.repack_quantized_weight(codes, scales, zeros, *kind)
    return Packed(blob.nbytes, lambda: partial(_bind, blob.clone(), problem.n, problem.k, kind))


def _bind(blob: torch.Tensor, n: int, k: int, kind: tuple[object, ...], x: Floats) -> Call:
    rows, bias, y = torch.from_numpy(x), torch.zeros(n), torch.empty(len(x), n)
    return partial(auto_round_kernel.woqgemm, rows, blob, bias, n, k, *kind, out=y)


if __name__ == "__main__":
    serve(kernels)
