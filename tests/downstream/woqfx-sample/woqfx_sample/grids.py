"""A 3-bit integer grid, and a table of 16 levels."""

from __future__ import annotations

import math

import woqfx


class Int3(woqfx.IntegerGrid):
    """Eight equal steps: the weight of largest magnitude lands on -4, values -4 to 3."""

    name = "sample_int3"
    bits = 3
    full_range = True


def _laplace(share: float) -> float:
    """The quantile of a Laplace distribution with location 0 and scale 1."""
    return -math.copysign(math.log(1 - 2 * abs(share - 0.5)), 0.5 - share)


class Laplace16(woqfx.Codebook):
    """Quantiles of a Laplace distribution: weights with heavier tails than a normal distribution's."""

    name = "laplace16"
    bits = 4
    table = tuple(_laplace((i + 0.5) / 15) for i in range(15))
