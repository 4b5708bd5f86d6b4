"""Whether all numbers of a tensor are finite: what every weight that is read is asked."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 18  # numbers at a time: intermediate results stay in the cache

#: The type of the bits of a float type, and the bits of its exponent, all of which infinity and NaN have set.
_EXPONENTS: dict[torch.dtype, tuple[torch.dtype, int]] = {
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float32: (torch.int32, 0x7F800000),
}


def all_finite(numbers: Tensor) -> bool:
    """Whether no number is infinite or NaN: `isfinite().all()`, and many times as fast."""
    if numbers.dtype not in _EXPONENTS:
        return bool(torch.isfinite(numbers).all())
    kind, exponent = _EXPONENTS[numbers.dtype]
    bits = numbers.detach().contiguous().view(kind).flatten().numpy()
    mask = bits.dtype.type(exponent)
    return all(np.max(bits[start : start + _CHUNK] & mask) < exponent for start in range(0, len(bits), _CHUNK))
