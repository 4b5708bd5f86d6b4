"""Fetching what a file holds next while what it held before is used.

Linux fetches ahead of one reader by itself, in large requests, but not of several threads that share a file. Told by
`posix_fadvise`, it fetches in small ones. A thread that sends the bytes nowhere has it fetch in large ones, at a
fraction of the advice's processor time: the bytes are not copied, and stay in the page cache.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress
from io import FileIO
from itertools import dropwhile
from pathlib import Path

#: How many bytes behind the reader may be fetched: a little more than disks bring while a model's skeleton is built.
AHEAD = 256 << 20
#: What is fetched at a time; fetching begins at multiples of it.
PIECE = 8 << 20
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)


class Prefetch:
    """Has the system bring an open file into its page cache ahead of whoever reads it.

    A thread does so while there is something to fetch that is not there. Every piece is fetched once. Threads may share
    one. This is advice: where there is no thread to be had, or the system sends files only to the network, reading is
    slower, and what is wrong with the file or its device, reading will tell.
    """

    def __init__(self, file: FileIO) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        self._ends: set[int] = set()
        self._asked: set[int] = set()
        self._waiting: deque[int] = deque()
        #: Held by the thread, and for ever after a failure. Nobody waits for it: a process may fork at any time.
        self._busy = threading.Lock()

    def follow(self, start: int, stop: int) -> None:
        """The bytes from `start` to `stop` are read now: if they lie behind others that were read, so will the next."""
        if start in self._ends:
            self.expect(stop)
        self._ends.add(stop)

    def expect(self, position: int) -> None:
        """Bytes from `position` on will be read soon."""
        first = -(-position // PIECE) * PIECE
        new = [start for start in range(first, min(position + AHEAD, self._size), PIECE) if start not in self._asked]
        self._asked.update(new)
        self._waiting.extend(dropwhile(self._is_held, new))
        if self._waiting and self._busy.acquire(blocking=False):
            with suppress(OSError, RuntimeError):
                file = FileIO(os.dup(self._file.fileno()))  # the thread's own: this one may be closed at any time
                threading.Thread(target=self._fetch, args=(file,), name="woqfx-prefetch", daemon=True).start()

    def close(self) -> None:
        """Fetch nothing but what is on its way."""
        self._waiting.clear()

    def _is_held(self, start: int) -> bool:
        """Whether the page cache has the end of this piece already; no, where the system does not say."""
        if _NOWAIT is None:
            return False
        last = min(start + PIECE, self._size) - 1
        with suppress(OSError):  # BlockingIOError where it has not
            return os.preadv(self._file.fileno(), [bytearray(1)], last, _NOWAIT) == 1
        return False

    def _fetch(self, file: FileIO) -> None:
        with suppress(OSError), file, Path(os.devnull).open("wb") as nowhere:
            with suppress(IndexError):  # nothing is waiting
                while True:
                    start = self._waiting.popleft()
                    os.sendfile(nowhere.fileno(), file.fileno(), start, min(PIECE, self._size - start))
            self._busy.release()
