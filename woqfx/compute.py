"""Compute dtypes: how `x @ W.T` is evaluated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from woqfx.qtensor import QTensor


class ComputeDType(ABC):
    """The arithmetic of a linear layer, as an exact reference that every kernel is judged against."""

    #: The name that schemes and the command line use.
    name: ClassVar[str]
    #: Whether it keeps activations of `Scheme.outlier_threshold` and above out of its rounding.
    has_outliers: ClassVar[bool] = False

    @abstractmethod
    def matmul(self, x: Tensor, weight: QTensor, bias: Tensor | None) -> Tensor:
        """`x @ W.T + bias`: x [..., K] of any float type, weight [N, K], bias [N]; returns [..., N] in x's type.

        A row's result must not depend on the rows beside it.
        """

    def __repr__(self) -> str:
        return f"<compute dtype {self.name}>"
