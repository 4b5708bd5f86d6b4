"""woqfx's own kernels, measured as its peers are; and a stranger's table of 16 levels, which nobody has seen before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

import woqfx
from benchmarks.peers.kernel_worker import Call, Floats, Kernel, Packed, Problem, serve
from benchmarks.peers.kernels_torch import bind
from benchmarks.weights import DTYPES
from woqfx import Codebook, QTensor, Scheme, quantize_nearest
from woqfx.bench import activation_dtype

BACKEND = "torch_cpu"
STRANGER = "stranger16"
#: What it is compared with: the same number of levels, which everybody knows.
KNOWN = "nf4"


class Stranger(Codebook):
    """16 levels with no regularity at all."""

    name = STRANGER
    bits = 4
    table = (-0.97, -0.61, 0.03, 0.88, -0.11, 0.47, -0.35, 1.0, 0.19, -0.74, 0.66, -0.23, 0.31, -0.05, 0.55, -0.48)


class _Plugin:
    @woqfx.hookimpl
    def woqfx_dtypes(self) -> list[Codebook]:
        """The stranger's."""
        return [Stranger()]


def kernels(threads: int) -> Sequence[Kernel]:
    """The dtypes that are measured, and the stranger's, in every compute dtype."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    woqfx.register(_Plugin(), "a stranger")
    known = woqfx.registry()
    return [
        Kernel("woqfx", dtype, compute, partial(_pack, dtype, compute))
        for compute in known.names("compute dtype")
        for dtype in (*DTYPES, STRANGER)
    ]


def _pack(dtype: str, compute: str, problem: Problem) -> Packed:
    weight, grid = torch.from_numpy(problem.weight), woqfx.registry().dtype(dtype)
    scheme = Scheme(dtype, group_size=problem.group, compute_dtype=compute)
    q = quantize_nearest(weight, grid, scheme, name="weight")
    return Packed(q.nbytes, partial(_copy, q, activation_dtype(compute)))


def _copy(q: QTensor, dtype: torch.dtype) -> Callable[[Floats], Call]:
    parts = {name: part.clone() for name, part in q.tensors().items()}
    packed = woqfx.registry().backend(BACKEND).pack(QTensor.of_parts(q.dtype, q.scheme, q.shape, parts), dtype)
    return partial(bind, packed.linear, dtype)


if __name__ == "__main__":
    serve(kernels)
