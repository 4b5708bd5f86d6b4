"""Memory for large tensors: huge pages where the system has them, and a tensor's ordinary life."""

from __future__ import annotations

import gc
import mmap
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from woqfx.hugepages import Pages

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
    assert advised_mapping(Pages().empty(LARGE, torch.float32).data_ptr())
    assert not advised_mapping(Pages().empty((3, 100), torch.float32).data_ptr())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool], ids=str)
@pytest.mark.parametrize("shape", [LARGE, (3 << 20,), (2, 0, 5), ()], ids=str)
def test_shape_and_type_are_as_asked_for(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    made = Pages().empty(shape, dtype)
    assert (made.shape, made.dtype, made.is_contiguous()) == (shape, dtype, True)
    assert made.data_ptr() % 64 == 0  # what PyTorch promises its own kernels


def test_what_is_written_is_read_and_a_view_keeps_the_memory() -> None:
    made = Pages().empty(LARGE, torch.float32)
    made.copy_(torch.arange(made.numel()).view(LARGE))
    last = made[-1]
    del made
    gc.collect()
    assert last.tolist()[-2:] == [(3 << 20) - 2, (3 << 20) - 1]


@needs_linux
def test_memory_goes_back_with_the_last_view() -> None:
    made = Pages().empty(LARGE, torch.float32)
    address, view = made.data_ptr(), made[1]
    del made
    assert advised_mapping(address)
    del view
    assert not advised_mapping(address)


@needs_linux
def test_what_a_tensor_leaves_the_next_one_gets_if_it_fits() -> None:
    pages = Pages(most=32 << 20)
    made = pages.empty(LARGE, torch.float32)
    address = made.data_ptr()
    other = pages.empty(LARGE, torch.float32)
    assert other.data_ptr() != address
    del made
    assert pages.empty((1 << 20,), torch.uint8).data_ptr() != address, "a small one takes a large one's memory"
    again = pages.empty((10 << 20,), torch.uint8)
    assert again.data_ptr() == address
    del pages, other
    assert advised_mapping(address)
    del again
    assert not advised_mapping(address)


@needs_linux
def test_a_tensor_that_stays_keeps_its_own_memory_alone() -> None:
    pages = Pages()
    stays, goes = (pages.empty(LARGE, torch.float32) for _ in range(2))
    address = goes.data_ptr()
    del goes
    assert advised_mapping(address)
    del pages
    assert not advised_mapping(address) and advised_mapping(stays.data_ptr())


@needs_linux
def test_no_more_is_kept_than_was_said() -> None:
    pages = Pages(most=16 << 20)
    both = [pages.empty(LARGE, torch.float32) for _ in range(2)]
    first, second = (one.data_ptr() for one in both)
    both.pop(0)
    assert advised_mapping(first)
    both.pop(0)
    assert not advised_mapping(second)


def test_threads_never_share_memory() -> None:
    pages = Pages()

    def filled(value: int) -> bool:
        made = pages.empty((1 << 20,), torch.uint8).fill_(value)
        return bool((made == value).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(filled, range(200)))


def test_without_huge_pages_pytorchs_own_memory_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", refused)
    assert Pages().empty(LARGE, torch.float32).fill_(2).sum() == 2 * (3 << 20)
