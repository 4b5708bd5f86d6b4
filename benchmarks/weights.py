"""The weights and schemes that the suites run over."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

import woqfx
from woqfx import QTensor, Scheme, quantize_nearest

DTYPES = ("int8", "int4_fullrange", "int4_clip", "nf4", "fp4_e2m1")
COMPUTE_DTYPES = ("fp32", "bf16", "int8")

#: The built-in dtypes in every form that they have.
SCHEMES = {
    **{dtype: Scheme(dtype) for dtype in DTYPES},
    **{f"{dtype}-asym": Scheme(dtype, symmetric=False) for dtype in DTYPES if dtype.startswith("int")},
}


def random_weight(n: int, k: int) -> Tensor:
    """A weight [n, k] as models have them: bfloat16, normal, the same every time."""
    return torch.randn(n, k, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()


def quantized(weight: Tensor, scheme: Scheme) -> QTensor:
    """`weight` rounded to nearest."""
    return quantize_nearest(weight, woqfx.registry().dtype(scheme.dtype), scheme, name="benchmark")


def stored_bytes(scheme: Scheme, shape: tuple[int, int]) -> int:
    """What a weight of this shape takes in codes, scales and zeros."""
    specs = QTensor.specs(woqfx.registry().dtype(scheme.dtype), scheme, shape)
    return sum(prod(size) * kind.itemsize for kind, size in specs.values())
