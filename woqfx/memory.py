"""What this process takes of the machine."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes; mapped pages of files that were in memory count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch computes with `count` threads in this process, and backends follow; then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def single_threaded() -> AbstractContextManager[None]:
    """One thread for a while: a sum's last digits depend on how many share it.

    Work is shared out by batches and weights instead.
    """
    return threads(1)
