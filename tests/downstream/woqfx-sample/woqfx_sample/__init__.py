"""Two dtypes, an algorithm and a backend for woqfx."""

from __future__ import annotations

import woqfx


@woqfx.hookimpl
def woqfx_dtypes() -> list[woqfx.DType]:
    """Give both grids."""
    from woqfx_sample.grids import Int3, Laplace16

    return [Int3(), Laplace16()]


@woqfx.hookimpl
def woqfx_algorithms() -> list[type[woqfx.Algorithm]]:
    """Give the algorithm."""
    from woqfx_sample.least_squares import LeastSquares

    return [LeastSquares]


@woqfx.hookimpl
def woqfx_backends() -> list[woqfx.Backend]:
    """Give the backend."""
    from woqfx_sample.backend import Numpy

    return [Numpy()]
