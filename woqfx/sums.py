"""A sum whose order is part of its definition, so that it is the same number on every machine and in every kernel."""

from __future__ import annotations

from torch import Tensor


def sum_by_halves(x: Tensor) -> Tensor:
    """The sum over the last dimension: [..., n] to [...], in the type of `x`, which is overwritten.

    The second half is added to the first, until one number is left; of an odd count, the middle one waits. So rounding
    errors grow with log n only, as in any pairwise sum.
    """
    n = x.shape[-1]
    while n > 1:
        half = (n + 1) // 2
        x[..., : n - half] += x[..., half:n]
        n = half
    return x[..., 0]
