"""Where packed weights lie: small ones one after the other in common chunks, each for as long as it is held."""

from __future__ import annotations

import gc
from itertools import pairwise

import pytest
import torch
from torch.utils.dlpack import from_dlpack

from woqfx_native import _core


def memory(size):
    return from_dlpack(_core.weight_memory(size))


@pytest.mark.parametrize("size", [1, 64, 1000, 4 << 20, (4 << 20) + 1, 20 << 20])
def test_all_sizes_are_there_on_lines_of_64_bytes(size):
    made = memory(size)
    assert made.numel() == size and made.data_ptr() % 64 == 0


def test_small_weights_are_neighbours_and_do_not_overlap():
    size = 100_032
    kept = [memory(size) for _ in range(40)]
    places = [made.data_ptr() for made in kept]
    steps = [after - before for before, after in pairwise(places)]
    assert steps.count(size) >= 38  # 40 of them may need two chunks
    for index, made in enumerate(kept):
        made.fill_(index)
    assert all(bool((made == index).all()) for index, made in enumerate(kept))


def test_a_weight_outlives_its_neighbours():
    first, kept, last = memory(1 << 20), memory(1 << 20), memory(1 << 20)
    kept.fill_(7)
    del first, last
    gc.collect()
    others = [memory(1 << 20).fill_(9) for _ in range(40)]
    assert bool((kept == 7).all()) and len(others) == 40


def test_a_size_that_exceeds_memory_is_an_error():
    with pytest.raises(MemoryError):
        memory(1 << 62)
    assert torch.equal(memory(8).fill_(1), torch.ones(8, dtype=torch.uint8))
