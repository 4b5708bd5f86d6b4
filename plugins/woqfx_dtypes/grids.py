"""The numbers of the built-in grids. All arithmetic is in woqfx's `IntegerGrid` and `Codebook`."""

from __future__ import annotations

from woqfx import Codebook, IntegerGrid


class Int8(IntegerGrid):
    """Scale amax / 127; symmetric values -127 to 127."""

    name = "int8"
    bits = 8


class Int4Clip(IntegerGrid):
    """Scale amax / 7; symmetric values -7 to 7, and -8 where a range was clipped."""

    name = "int4_clip"
    bits = 4


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
