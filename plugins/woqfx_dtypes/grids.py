"""The numbers of the built-in grids. The arithmetic is that of woqfx's `IntegerGrid` and `Codebook`."""

from __future__ import annotations

import torch
from torch import Tensor

from woqfx import Codebook, GroupParams, IntegerGrid


class Int8(IntegerGrid):
    """Scale amax / 127; symmetric values -127 to 127."""

    name = "int8"
    bits = 8


class Int4Clip(IntegerGrid):
    """Scale amax / 7; symmetric values -7 to 7, and -8 where a range was clipped."""

    name = "int4_clip"
    bits = 4


class Int7(IntegerGrid):
    """Scale amax / 63; symmetric values -63 to 63, and -64 where a range was clipped."""

    name = "int7"
    bits = 7


class Int6(IntegerGrid):
    """Scale amax / 31; symmetric values -31 to 31, and -32 where a range was clipped."""

    name = "int6"
    bits = 6


class Int5(IntegerGrid):
    """Scale amax / 15; symmetric values -15 to 15, and -16 where a range was clipped."""

    name = "int5"
    bits = 5


class Int3(IntegerGrid):
    """Scale amax / 3; symmetric values -3 to 3, and -4 where a range was clipped."""

    name = "int3"
    bits = 3


class Int2(IntegerGrid):
    """Scale amax; symmetric values -1, 0 and 1, and -2 where a range was clipped."""

    name = "int2"
    bits = 2


class Int4FullRange(IntegerGrid):
    """Scale amax / 8, signed so that the weight of largest magnitude lands on -8; values -8 to 7."""

    name = "int4_fullrange"
    bits = 4
    full_range = True


class NF4(Codebook):
    """4-bit NormalFloat: quantiles of a normal distribution (QLoRA, arXiv 2305.14314, appendix E)."""

    name = "nf4"
    bits = 4
    table = (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    )


class FP4E2M1(Codebook):
    """The 4-bit float of the OCP Microscaling formats (v1.0, section 5.3.3): sign, 2 exponent bits, 1 mantissa bit.

    Codes are the format's own bit patterns: bit 3 is the sign.
    """

    name = "fp4_e2m1"
    bits = 4
    table = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


class FP4BNB(Codebook):
    """bitsandbytes' fp4: like `fp4_e2m1`, but its smallest number is 1/192 of the largest, and codes are its own."""

    name = "fp4_bnb"
    bits = 4
    table = tuple(
        sign * magnitude / 12 for sign in (1.0, -1.0) for magnitude in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
    )


class FP4E2M1ITREX(Codebook):
    """Intel Extension for Transformers' fp4_e2m1: that of OCP, but with 0.0625 where 0.5 belongs."""

    name = "fp4_e2m1_itrex"
    bits = 4
    table = tuple(sign * magnitude for sign in (1.0, -1.0) for magnitude in (0.0, 0.0625, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))


class IQ4NL(Codebook):
    """The 16 levels of GGML's IQ4_NL (`kvalues_iq4nl`), spaced for weights that are distributed normally.

    Its table reaches further below zero than above. As in GGML, a scale has the sign that puts the weight of largest
    magnitude on the lowest level.
    """

    name = "iq4_nl"
    bits = 4
    table = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

    def fit(self, groups: Tensor, *, symmetric: bool, shrink: float = 1.0) -> GroupParams:
        """See `DType.fit`."""
        scale = super().fit(groups, symmetric=symmetric, shrink=shrink).scale
        return GroupParams(torch.where(groups.amax(-1) > -groups.amin(-1), -scale, scale))
