"""The triangular factor that tells how the error of one column is made up for by the later ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from woqfx import WoqfxError


@dataclass(frozen=True, eq=False)
class Factor:
    """`upper` float32 [K, K] with upper^T upper = (M + damp * mean(diag M) * I)^-1, and the damping that it took."""

    upper: Tensor
    damp: float

    @property
    def costs(self) -> Tensor:
        """What an error in each column costs that all later columns make up for as well as they can: [K].

        This is 1 / upper[i, i]^2, the part of input i's second moment that the later inputs do not explain.
        """
        return self.upper.diagonal().square().reciprocal()


def factorize(moments: Tensor, damp: float) -> Factor:
    """Factorize the inverse of `moments` [K, K], damped; the damping is doubled for as long as that fails.

    With the columns in reverse, M = C C^T gives M = R R^T for an upper R, and upper = R^-1: one Cholesky factorization
    and one triangular inverse, where the paper (arXiv 2210.17323, section 3.3) inverts M first.
    Columns that no input ever reached count as if they had the mean second moment, apart from all others.
    Raises `WoqfxError` for moments that are not finite.
    """
    matrix = moments.double()
    diagonal = matrix.diagonal()
    mean = diagonal.mean()
    if not math.isfinite(mean):
        raise WoqfxError("its inputs on the calibration data are not finite: the model overflows; keep it by a rule")
    if float(mean) == 0:
        return Factor(torch.eye(len(moments)), damp)
    matrix = matrix + torch.diag(torch.where(diagonal == 0, mean, 0.0))
    while True:
        damped = matrix + torch.eye(len(matrix), dtype=torch.float64) * (damp * mean)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not int(failed):
            break
        damp = max(2 * damp, 1e-4)
    identity = torch.eye(len(matrix), dtype=torch.float64)
    upper = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return Factor(upper.float(), damp)
