"""What the suites have in common: schemes, weights, and comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from woqfx.dtype import scale_storage
from woqfx.nearest import quantize_nearest
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme

_INTEGERS = ("int8", "int4_clip", "int4_fullrange")
_CODEBOOKS = ("nf4", "fp4_e2m1")


def _schemes() -> Iterator[tuple[str, Scheme]]:
    for name in (*_INTEGERS, *_CODEBOOKS):
        yield f"{name}-g32", Scheme(name)
        yield f"{name}-g24", Scheme(name, group_size=24, scale_dtype="bf16")
        yield f"{name}-per-row", Scheme(name, group_size=-1, scale_dtype="fp32")
        yield f"{name}-double", Scheme(name, group_size=16, double_quant=True)
    for name in _INTEGERS:
        yield f"{name}-asym", Scheme(name, symmetric=False)
        yield f"{name}-asym-double", Scheme(name, group_size=48, symmetric=False, double_quant=True)


#: Every built-in dtype, with groups that divide a row and that do not, with and without zero points and
#: double quantization.
SCHEMES: Mapping[str, Scheme] = dict(_schemes())


#: Those that may have offsets in place of zeros.
OFFSET_CASES = tuple(label for label, scheme in SCHEMES.items() if not scheme.symmetric)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, the same for the same arguments."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quantized(scheme: Scheme, *shape: int, seed: int = 0) -> QTensor:
    """A normal weight of this shape, rounded to nearest."""
    weight = normal(*shape, seed=seed) * 0.05
    return quantize_nearest(weight, registry().dtype(scheme.dtype), scheme, name="weight")


def permuted(q: QTensor) -> QTensor:
    """The same codes for inputs in another order, each weight of a stack in its own."""
    draw = torch.Generator().manual_seed(7)
    *lead, _, k = q.shape
    orders = [torch.randperm(k, generator=draw) for _ in range(prod(lead))]
    return replace(q, order=torch.stack(orders).to(torch.int32).view(*lead, k))


def with_offsets(q: QTensor) -> QTensor:
    """An asymmetric weight with offsets in place of its zeros (GGUF's Q4_1), which are not multiples of its scales."""
    params = q.params()
    assert params.zero is not None
    offset = params.scale * (0.37 - params.zero)
    return replace(q, zeros=None, offsets=offset.to(scale_storage(q.scheme.scale_dtype)))


def same_bytes(a: QTensor, b: QTensor) -> bool:
    """Whether two weights are equal in scheme, shape, and every bit."""
    mine, theirs = a.tensors(), b.tensors()
    return (
        (a.dtype.name, a.scheme, tuple(a.shape), mine.keys()) == (b.dtype.name, b.scheme, tuple(b.shape), theirs.keys())
        and all(part.dtype == theirs[suffix].dtype for suffix, part in mine.items())
        and all(torch.equal(part, theirs[suffix]) for suffix, part in mine.items())
    )


def relative_error(value: Tensor, exact: Tensor) -> float:
    """|value - exact| / |exact|, Frobenius norms in float64; 0 where both are 0."""
    distance, size = float((value.double() - exact.double()).norm()), float(exact.double().norm())
    return distance / size if size else distance
