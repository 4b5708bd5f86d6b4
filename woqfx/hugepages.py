"""Large tensors in huge pages.

Memory that is new to a process comes page by page, each one cleared and entered into the process's tables when it is
first touched. In pages of 4 KiB that takes several times as long as copying a file's cached bytes there, and in huge
ones still as long.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

_HUGE = 2 << 20
#: From here on whole huge pages are taken.
_LARGE = _HUGE // 2
#: What Linux calls the advice; other systems, and Linux where it is told so, choose pages themselves.
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)


class Pages:
    """Memory for tensors that come and go: what one has left, the next one gets.

    At most `most` bytes are kept that no tensor uses, for as long as this object lives. Threads may share it.
    """

    def __init__(self, most: int = 128 << 20) -> None:
        self._most = most
        self._free: list[mmap.mmap] = []

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """`torch.empty`, which for a large tensor takes memory of its own in huge pages."""
        count = prod(shape)
        size = count * dtype.itemsize
        memory = None if _ADVICE is None or size < _LARGE else self._take(-(-size // _HUGE) * _HUGE)
        if memory is None:
            return torch.empty(shape, dtype=dtype)
        lent = np.frombuffer(memory, dtype=np.uint8)  # lives exactly as long as a tensor looks at it
        weakref.finalize(lent, _give_back, weakref.ref(self), memory).atexit = False
        return torch.frombuffer(lent, dtype=dtype, count=count).view(*shape)

    def _take(self, size: int) -> mmap.mmap | None:
        for memory in tuple(self._free):
            if size <= len(memory) <= 2 * size:
                try:
                    self._free.remove(memory)
                except ValueError:  # another thread has taken it
                    continue
                return memory
        try:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(_ADVICE or 0)
        except OSError:  # no such room, or a kernel without huge pages: PyTorch's own allocator, with its own error
            return None
        return memory

    def _keep(self, memory: mmap.mmap) -> None:
        if sum(map(len, tuple(self._free))) + len(memory) <= self._most:
            self._free.append(memory)


def _give_back(pages: weakref.ref[Pages], memory: mmap.mmap) -> None:
    """Called wherever the last tensor goes, by the garbage collector, too: it takes no lock.

    A tensor that stays keeps its own memory, and not all that others have left.
    """
    if (alive := pages()) is not None:
        alive._keep(memory)
