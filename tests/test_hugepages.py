"""Memory for large tensors: huge pages where the system has them, and a tensor's ordinary life."""

from __future__ import annotations

import gc
import mmap
import re
from pathlib import Path

import pytest
import torch

from woqfx import hugepages

LARGE = (3, 1 << 20)  # 12 MiB of float32
_MAPS = Path("/proc/self/smaps")
needs_linux = pytest.mark.skipif(not _MAPS.exists(), reason="tells mappings from /proc")


def advised_mapping(address: int) -> bool:
    """Whether the kernel's own table says that huge pages were asked for ("hg") where `address` lies."""
    inside = False
    for line in _MAPS.read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    return False


@needs_linux
def test_a_large_tensor_is_advised_to_be_huge_and_a_small_one_is_not() -> None:
    assert advised_mapping(hugepages.empty(LARGE, torch.float32).data_ptr())
    assert not advised_mapping(hugepages.empty((3, 100), torch.float32).data_ptr())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool], ids=str)
@pytest.mark.parametrize("shape", [LARGE, (3 << 20,), (2, 0, 5), ()], ids=str)
def test_shape_and_type_are_as_asked_for(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    made = hugepages.empty(shape, dtype)
    assert (made.shape, made.dtype, made.is_contiguous()) == (shape, dtype, True)
    assert made.data_ptr() % 64 == 0  # what PyTorch promises its own kernels


def test_what_is_written_is_read_and_a_view_keeps_the_memory() -> None:
    made = hugepages.empty(LARGE, torch.float32)
    made.copy_(torch.arange(made.numel()).view(LARGE))
    last = made[-1]
    del made
    gc.collect()
    assert last.tolist()[-2:] == [(3 << 20) - 2, (3 << 20) - 1]


@needs_linux
def test_memory_goes_back_with_the_last_view() -> None:
    made = hugepages.empty(LARGE, torch.float32)
    address, view = made.data_ptr(), made[1]
    del made
    assert advised_mapping(address)
    del view
    assert not advised_mapping(address)


def test_without_huge_pages_pytorchs_own_memory_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", refused)
    assert hugepages.empty(LARGE, torch.float32).fill_(2).sum() == 2 * (3 << 20)
