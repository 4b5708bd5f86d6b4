"""Large tensors in huge pages.

Memory that is new to a process comes page by page, each one cleared and entered into the process's tables when it is
first touched. In pages of 4 KiB that takes several times as long as copying a file's cached bytes there.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

_HUGE = 2 << 20
#: From here on the last, partly used page is a small part of the whole.
_LARGE = 2 * _HUGE
#: What Linux calls the advice; other systems, and Linux where it is told so, choose pages themselves.
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`torch.empty`, which for a large tensor asks for memory of its own in huge pages."""
    count = prod(shape)
    size = count * dtype.itemsize
    if _ADVICE is None or size < _LARGE:
        return torch.empty(shape, dtype=dtype)
    try:
        memory = mmap.mmap(-1, -(-size // _HUGE) * _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(_ADVICE)
    except OSError:  # no such room, or a kernel without huge pages: PyTorch's own allocator, with its own error
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(*shape)
