"""PyTorch's and bitsandbytes' kernels, in woqfx's own environment: those that `woqfx bench` shows, timed apart."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.peers.kernel_worker import Call, Floats, Kernel, Packed, Problem, serve
from woqfx.bench import Multiply, activation_dtype
from woqfx.bench_peers import PEERS, Peer


def kernels(threads: int) -> Sequence[Kernel]:
    """All of them."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return [Kernel(peer.name, peer.dtype, peer.compute_dtype, partial(_pack, peer)) for peer in PEERS]


def _pack(peer: Peer, problem: Problem) -> Packed:
    multiply, nbytes = peer.prepare(torch.from_numpy(problem.weight), problem.group)
    return Packed(nbytes, lambda: partial(bind, copy.deepcopy(multiply), activation_dtype(peer.compute_dtype)))


def bind(multiply: Multiply, dtype: torch.dtype, x: Floats) -> Call:
    """A call that multiplies x [rows, k] as a tensor of this type."""
    return partial(multiply, torch.from_numpy(x).to(dtype))


if __name__ == "__main__":
    serve(kernels)
