"""A linear layer as the PyTorch backend runs it.

One row must read every stored byte of the weight and does little with it: it is held against the bandwidth. More rows
are held against the peak of the arithmetic, bfloat16's for compute dtype bf16, float32's for the others.
"""

from __future__ import annotations

import pytest
import torch

import woqfx
from benchmarks.conftest import Timed
from benchmarks.weights import COMPUTE_DTYPES, DTYPES, quantized, random_weight
from woqfx import Scheme

N, K = 1024, 2048


@pytest.mark.parametrize("rows", [1, 16, 128])
@pytest.mark.parametrize("compute", COMPUTE_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(timed: Timed, dtype: str, compute: str, rows: int) -> None:
    """`x @ W.T` for x [rows, K]."""
    q = quantized(random_weight(N, K), Scheme(dtype, compute_dtype=compute))
    weight = woqfx.registry().backend("torch_cpu").pack(q, torch.float32)
    x = torch.randn(rows, K, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        if rows == 1:
            timed(lambda: weight.linear(x), moved=q.nbytes)
        else:
            timed(lambda: weight.linear(x), flops=2 * rows * N * K, peak="bf16" if compute == "bf16" else "fp32")
