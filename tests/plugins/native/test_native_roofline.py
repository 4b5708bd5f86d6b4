"""The limits that the native loops measure. Of speeds only ratios are told, and roughly: others may be at work."""

from __future__ import annotations

import numpy as np
import pytest

from woqfx.roofline import Roofline, uncached_buffer

_core = pytest.importorskip("woqfx_native._core")
from woqfx_native.roofline import measure  # noqa: E402 - there is nothing to import without the extension

ISAS = [isa for isa in _core.Isa if _core.supported(isa)]


def best(compute: str, isa: str) -> float:
    """The best of several, which neighbours spoil least."""
    return max(_core.peak_operations(_core.Compute[compute], _core.Isa[isa], 1) for _ in range(5))


def test_a_roofline_has_a_peak_for_each_compute_dtype_of_the_kernels() -> None:
    found = measure(1)
    assert isinstance(found, Roofline)
    assert found.peaks.keys() == {"fp32", "bf16", "int8"}
    assert found.how == f"{_core.best_isa().name} loops"
    assert 1e7 < found.read_bandwidth < 1e13
    assert all(1e8 < peak < 1e15 for peak in found.peaks.values())


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_every_instruction_set_of_this_machine_runs(isa: object) -> None:
    data = np.ones(1 << 20, np.uint8)
    assert _core.read_seconds(data, isa, 2) > 0
    for compute in _core.Compute:
        assert _core.peak_operations(compute, isa, 2) > 0


@pytest.mark.parametrize("size", [0, 1, 63, 257, 4 * 64 * 3 + 5], ids=str)
def test_any_size_can_be_read(size: int) -> None:
    for isa in ISAS:
        assert _core.read_seconds(np.ones(size, np.uint8), isa, 3) >= 0


def test_an_instruction_set_that_the_machine_lacks_is_an_error() -> None:
    lacking = [isa for isa in _core.Isa if not _core.supported(isa)]
    if not lacking:
        pytest.skip("this machine has all of them")
    with pytest.raises(_core.Error, match=f"does not have {lacking[0].name}"):
        _core.read_seconds(np.ones(64, np.uint8), lacking[0], 1)
    with pytest.raises(_core.Error, match=f"does not have {lacking[0].name}"):
        _core.peak_operations(_core.Compute.fp32, lacking[0], 1)


@pytest.mark.parametrize(
    ("wider", "narrower", "isa"),
    [("int8", "fp32", "avx512_vnni"), ("bf16", "fp32", "avx512_bf16"), ("int8", "bf16", "avx512_bf16")],
)
def test_narrower_numbers_go_faster(wider: str, narrower: str, isa: str) -> None:
    """A VNNI instruction multiplies four times as many numbers as a multiply-add does, one of bf16 twice as many."""
    if not _core.supported(_core.Isa[isa]):
        pytest.skip(f"this machine has no {isa}")
    assert best(wider, isa) > 1.3 * best(narrower, isa)


def test_a_buffer_that_no_cache_holds_is_read_no_faster_than_one_that_it_does() -> None:
    isa, large = _core.best_isa(), uncached_buffer().numpy()
    small = np.ones(1 << 18, np.uint8)
    slow = min(_core.read_seconds(large, isa, 1) for _ in range(3)) / large.nbytes
    fast = min(_core.read_seconds(small, isa, 1) for _ in range(50)) / small.nbytes
    assert fast < slow
