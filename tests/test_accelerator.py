"""Accelerators, which come through the hook woqfx_accelerators: who is asked, and what happens to one that is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import woqfx
from woqfx import Accelerator, DType, QTensor, Scheme, quantize_nearest
from woqfx.nearest import round_rows
from woqfx.plugin_loading import PluginWarning
from woqfx.plugins import registry
from woqfx.quality import relative_error, square_sums

WEIGHT = torch.randn(6, 70, generator=torch.Generator().manual_seed(0))
SCHEME = Scheme("int4_clip")


class Watched(Accelerator):
    """Does as PyTorch does, or declines, and counts."""

    def __init__(self, name: str, takes: bool = True) -> None:
        self.name, self.takes, self.asked = name, takes, 0

    def nearest(self, rows, dtype, scheme, ratios, importance):
        self.asked += 1
        if not self.takes:
            return None
        return round_rows(rows, dtype, scheme, lambda groups: dtype.fit(groups, symmetric=scheme.symmetric))

    def square_error(self, rows, q):
        self.asked += 1
        return square_sums(rows, q) if self.takes else None


class Faulty(Watched):
    """Raises, but for the small weight that the registry tries it on."""

    def nearest(self, rows, dtype, scheme, ratios, importance):
        if dtype.name != "probe":
            raise RuntimeError("out of cheese")


class Wrong(Watched):
    """Gives the codes of another weight."""

    def nearest(self, rows, dtype, scheme, ratios, importance):
        return super().nearest(-rows, dtype, scheme, ratios, importance)


class WrongSums(Watched):
    def square_error(self, rows, q):
        return tuple(1.0001 * sums for sums in square_sums(rows, q))


@pytest.fixture
def grid() -> DType:
    return registry().dtype("int4_clip")


@pytest.fixture
def given() -> Iterator[list[Accelerator]]:
    """Accelerators that a plugin provides, beside those that are installed, for the length of a test."""
    accelerators: list[Accelerator] = []

    class Plugin:
        @woqfx.hookimpl
        def woqfx_accelerators(self):
            return accelerators

    woqfx.register(Plugin(), "accelerators-under-test")
    yield accelerators
    woqfx.unregister("accelerators-under-test")


def quantized(grid: DType) -> QTensor:
    return quantize_nearest(WEIGHT, grid, SCHEME, name="w")


def codes_by_torch(grid: DType) -> torch.Tensor:
    return round_rows(WEIGHT, grid, SCHEME, lambda groups: grid.fit(groups, symmetric=True))[0]


def test_they_are_asked_by_name_until_one_takes_the_work(grid, given):
    declines, takes, idle = Watched("a-0", takes=False), Watched("a-1"), Watched("a-2")
    given += [idle, takes, declines]
    q = quantized(grid)
    before = [one.asked for one in (declines, takes, idle)]
    assert torch.equal(quantized(grid).codes, q.codes)
    assert relative_error(WEIGHT, q) > 0
    after = [one.asked for one in (declines, takes, idle)]
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 2, 0]


def test_a_fit_of_ones_own_is_nobody_elses_work(grid, given):
    given.append(watched := Watched("a-0"))
    registry().names("accelerator")
    before = watched.asked
    quantize_nearest(WEIGHT, grid, SCHEME, name="w", fit=lambda groups: grid.fit(groups, symmetric=True))
    assert watched.asked == before


def test_one_that_raises_is_reported_and_passed_by(grid, given):
    given.append(Faulty("a-0"))
    with pytest.warns(PluginWarning, match="failed in accelerator a-0: RuntimeError: out of cheese"):
        q = quantized(grid)
    assert torch.equal(q.codes, codes_by_torch(grid))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [(Wrong("a-0"), "its nearest codes or scales are not"), (WrongSums("a-0"), "its square errors are not")],
    ids=["codes", "sums"],
)
def test_one_that_gives_other_numbers_is_refused(grid, given, wrong, says):
    given.append(wrong)
    with pytest.warns(PluginWarning, match=f"unusable accelerator: a-0: {says}"):
        q = quantized(grid)
    assert torch.equal(q.codes, codes_by_torch(grid))
    assert "a-0" not in registry().names("accelerator")


def test_one_that_does_nothing_is_no_fault(given):
    class Idle(Accelerator):
        name = "a-0"

    given.append(Idle())
    assert "a-0" in registry().names("accelerator")
