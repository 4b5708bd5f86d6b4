"""Memory that is there.

In a virtual machine, the first touch of memory that the host has taken back is the host's work, and takes several times
as long as reading a file's cached bytes there: loading took 0.2 s or 1.3 s, depending on what had run before. Who times
loading has as much memory touched first.
"""

from __future__ import annotations

import mmap

_PAGE = 4096


def touch(nbytes: int = 2 << 30) -> None:
    """Take so many bytes in huge pages, as weights do, write to each of them, and give them back."""
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, nbytes, _PAGE):
            memory[start] = 1
