"""woqfx's conformance suites, and what is the sample's own."""

from __future__ import annotations

import pytest
from woqfx_sample.backend import Numpy
from woqfx_sample.grids import Int3, Laplace16
from woqfx_sample.least_squares import LeastSquares, LeastSquaresOptions

import woqfx
from woqfx.testing import AlgorithmSuite, BackendSuite, DTypeSuite


class TestInt3(DTypeSuite):
    dtype = Int3()


class TestLaplace16(DTypeSuite):
    dtype = Laplace16()


class TestLeastSquares(AlgorithmSuite):
    algorithm = LeastSquares
    variants = (LeastSquaresOptions(), LeastSquaresOptions(steps=1))
    rtn_multiple = 1.002  # the scale is rounded to its storage after the last turn


class TestNumpy(BackendSuite):
    backend = Numpy()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("dtype", "sample_int3"), ("dtype", "laplace16"), ("algorithm", "least_squares"), ("backend", "sample_numpy")],
)
def test_it_is_installed(kind, name):
    assert woqfx.registry().provider(kind, name).title == "plugin 'woqfx_sample' of woqfx-sample 1.2.3"
