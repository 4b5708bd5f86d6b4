"""bitsandbytes' LLM.int8() weights (arXiv 2208.07339): int8 [N, K] and the largest magnitude of each row.

For a parameter `p` the file holds `p`, and beside it `SCB` float32 [N] and `weight_format` (0: rows as they are):
w = p * SCB / 127.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from woqfx import GroupParams, QTensor, Scheme, registry
from woqfx.errors import CheckpointError

_STEP = 7.874015718698502e-3  # 1 / 127, as bitsandbytes writes it


def scheme(threshold: float) -> Scheme:
    """What such a weight is in woqfx. Inputs of magnitude `threshold` and more are multiplied in floating point."""
    return Scheme("int8", -1, scale_dtype="fp32", compute_dtype="int8", outlier_threshold=threshold)


def decode(how: Scheme, parts: Mapping[str, Tensor], where: str) -> QTensor:
    """The weight from its integers (`""`), `SCB` and `weight_format`. Raises `CheckpointError`."""
    layout = parts.get("weight_format")
    if layout is not None and int(layout) != 0:
        raise CheckpointError(
            f"{where} is stored in layout {int(layout)}, which belongs to one kind of GPU; save it again with a "
            "current bitsandbytes"
        )
    codes = parts[""].view(torch.uint8) ^ 0x80
    scales = (parts["SCB"] * _STEP).unsqueeze(-1)
    weight = QTensor.build(registry().dtype(how.dtype), how, codes, GroupParams(scales))
    weight.check(where)
    return weight
