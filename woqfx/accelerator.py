"""Accelerators: the core's own arithmetic, done faster and to the same bits."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from woqfx.dtype import DType, GroupParams
from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme


class Accelerator(ABC):
    """Does some of what the core does with PyTorch, faster. Having one changes no bit of any result.

    Each method stands for one piece of work and may answer None: then the next accelerator is asked, and at last
    PyTorch does it. Tensors are on the CPU. Methods may be called from several threads at once; on how many threads of
    its own one runs, `torch.get_num_threads()` says.
    """

    #: What `woqfx plugins` calls it.
    name: ClassVar[str]

    def nearest(
        self, rows: Tensor, dtype: DType, scheme: Scheme, ratios: Sequence[float], importance: Tensor | None
    ) -> tuple[Tensor, GroupParams] | None:
        """What `woqfx.nearest.round_rows` gives for a weight [N, K] and the dtype's own fit.

        Codes in bytes, uint8 [N, packed_width(K, bits)], and float32 parameters [N, G] as they will be stored. A group
        that holds a number which is not finite gets a scale that is not finite.
        """
        return None

    def square_error(self, rows: Tensor, q: QTensor) -> tuple[Tensor, Tensor] | None:
        """What `woqfx.quality.square_sums` gives for a weight [N, K] and what it became: float32 [N] and [N]."""
        return None
