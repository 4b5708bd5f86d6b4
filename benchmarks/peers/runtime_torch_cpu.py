"""woqfx's backend torch_cpu, whose model is transformers' own, for `benchmarks.runtime`."""

from __future__ import annotations

from typing import Any

import torch

import woqfx
from benchmarks.peers.runtime_transformers import Transformers
from benchmarks.peers.runtime_worker import serve


class TorchCPU(Transformers):
    """A checkpoint of woqfx, in a model of transformers."""

    def __init__(self, path: str, threads: int, options: dict[str, Any]) -> None:
        torch.set_num_threads(threads)
        self._hold(woqfx.load(path, backend_options=options))


if __name__ == "__main__":
    serve(TorchCPU)
