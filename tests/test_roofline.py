"""Limits of the machine, and the least time that work takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from woqfx import roofline
from woqfx.roofline import Roofline

# 10 bytes a second, 100 operations a second in fp32.
LIMITS = Roofline(10.0, {"fp32": 100.0}, "made up")


@pytest.mark.parametrize(
    ("nbytes", "operations", "compute", "seconds", "bound"),
    [
        (50, 100, "fp32", 5.0, "memory"),
        (50, 1000, "fp32", 10.0, "arithmetic"),
        (50, 500, "fp32", 5.0, "memory"),
        (50, 10**6, "a stranger's", 5.0, "memory"),
    ],
    ids=["memory", "arithmetic", "both", "unknown peak"],
)
def test_the_slower_of_the_two_limits_counts(
    nbytes: int, operations: int, compute: str, seconds: float, bound: str
) -> None:
    assert LIMITS.least_seconds(nbytes, operations, compute) == seconds
    assert LIMITS.bound(nbytes, operations, compute) == bound


def test_the_middle_of_several_is_taken_limit_by_limit() -> None:
    several = [Roofline(b, {"fp32": p, "int8": 2 * p}, "made up") for b, p in ((1, 30), (3, 10), (2, 20))]
    assert Roofline.middle(several) == Roofline(2, {"fp32": 20, "int8": 40}, "made up")


def test_torch_measures_each_limit_and_leaves_its_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "_SIDE", 256)
    monkeypatch.setattr(roofline, "_REPEATS", 1)
    before = torch.get_num_threads()
    found = roofline.measured_with_torch(before + 1)
    assert torch.get_num_threads() == before
    assert found.how == "PyTorch"
    assert found.peaks.keys() == {"fp32", "bf16", "int8"}
    # Between a machine of 1990 and none that there is.
    assert 1e6 < found.read_bandwidth < 1e14
    assert all(1e6 < peak < 1e17 for peak in found.peaks.values())


def test_the_median_of_what_work_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    calls = []
    assert roofline.median_seconds(lambda: calls.append(1), repeats=3) == 2.0
    assert len(calls) == 4


def test_no_cache_holds_the_buffer() -> None:
    buffer = roofline.uncached_buffer()
    assert buffer.nbytes >= max(256 << 20, 4 * roofline.last_level_cache())
    assert buffer.dtype == torch.uint8
    assert bool((buffer[:: 1 << 20] == 1).all())


@pytest.mark.parametrize(
    ("text", "size"), [("32768K\n", 32 << 20), ("105M", 105 << 20), ("1G", 1 << 30), ("512", 512)], ids=str
)
def test_cache_sizes(text: str, size: int) -> None:
    assert roofline._size(text) == size


@pytest.mark.skipif(not Path("/sys/devices/system/cpu/cpu0/cache/index0/size").exists(), reason="the system is silent")
def test_the_last_level_cache_is_the_largest() -> None:
    found = [path.read_text() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    assert roofline.last_level_cache() == max(roofline._size(text) for text in found) > 0
