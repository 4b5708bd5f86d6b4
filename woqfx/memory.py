"""What this process takes of the machine."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes; mapped pages of files that were in memory count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def single_threaded() -> Iterator[None]:
    """PyTorch computes with one thread in this process; then with as many as before.

    A sum's last digits depend on how many threads share it. Work is shared out by batches and weights instead.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
