"""From weights to codes and back, in memory."""

from __future__ import annotations

import pytest

import woqfx
from benchmarks.conftest import Timed
from benchmarks.weights import SCHEMES, quantized, random_weight, stored_bytes
from woqfx import Layer, Scheme
from woqfx.options import read_options
from woqfx.quality import relative_error

SHAPE = (1024, 2048)
SMALL = (256, 1024)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_quantize(timed: Timed, scheme: Scheme) -> None:
    """Round to nearest; reads bfloat16, writes codes and scales."""
    weight = random_weight(*SHAPE)
    timed(lambda: quantized(weight, scheme), moved=weight.nbytes + stored_bytes(scheme, SHAPE))


@pytest.mark.parametrize("dtype", ["int4_clip", "nf4"])
def test_quantize_mse_range(timed: Timed, dtype: str) -> None:
    """The same with RTN's search over 40 clipping ratios."""
    scheme, weight = Scheme(dtype), random_weight(*SMALL)
    kind = woqfx.registry().algorithm("rtn")
    rtn = kind(read_options("algorithm rtn", kind.Options, {"mse_range": True}))
    layer = Layer("benchmark", weight, scheme, woqfx.registry().dtype(dtype))
    timed(lambda: rtn.round(layer), moved=weight.nbytes + stored_bytes(scheme, SMALL))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_dequantize(timed: Timed, scheme: Scheme) -> None:
    """Reads codes and scales, writes float32."""
    q = quantized(random_weight(*SHAPE), scheme)
    timed(q.dequantize, moved=q.nbytes + 4 * SHAPE[0] * SHAPE[1])


@pytest.mark.parametrize("dtype", ["int8", "int4_clip", "nf4"])
def test_relative_error(timed: Timed, dtype: str) -> None:
    """What the engine notes of every weight; reads the weight and its codes."""
    weight = random_weight(*SHAPE)
    q = quantized(weight, Scheme(dtype))
    timed(lambda: relative_error(weight, q), moved=weight.nbytes + q.nbytes)
