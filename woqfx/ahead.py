"""Doing the next things in other threads while the present one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def read_ahead(keys: Iterable[Key], read: Callable[[Key], Value], threads: int) -> Iterator[tuple[Key, Value]]:
    """Each key with `read(key)`, in order, where up to `threads` more are being read or wait to be taken.

    What `read` raises comes out where its value would have; what was read beyond it is dropped.
    """
    waiting: deque[tuple[Key, Future[Value]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="woqfx-read") as pool:
        try:
            for key in keys:
                waiting.append((key, pool.submit(read, key)))
                if len(waiting) > threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
                    del future  # so that the value lives no longer than its user needs it
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
                del future
        finally:
            for _, future in waiting:
                future.cancel()
