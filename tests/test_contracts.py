"""What the registry checks of what plugins provide, called directly. Through real plugins: test_bad_plugins.py."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from woqfx import Accelerator, Algorithm, Backend, Codebook, ComputeDType, DType, Format, IntegerGrid, Support
from woqfx.calibration.contract import CalibrationSet
from woqfx.contracts import fault_of
from woqfx.plugins import KINDS, registry


class Grid(IntegerGrid):
    name, bits = "grid", 4


class Signs(Codebook):
    """The smallest table that there is."""

    name, bits, table = "signs", 1, (-1.0, 1.0)


class Bare(Algorithm):
    name = "bare"


class Small(Backend):
    name = "small"

    def supports(self, scheme, dtype, shape, cpu):
        return Support(ok=False, reason="of the moon", remedy="wait")

    def pack(self, q, float_dtype):
        raise NotImplementedError


CONTRACTS = {
    "dtype": DType,
    "compute dtype": ComputeDType,
    "algorithm": Algorithm,
    "backend": Backend,
    "format": Format,
    "calibration set": CalibrationSet,
    "accelerator": Accelerator,
}


def test_every_kind_has_a_contract():
    assert set(CONTRACTS) == set(KINDS)


@pytest.mark.parametrize(
    ("kind", "thing"),
    [("dtype", Grid()), ("dtype", Signs()), ("algorithm", Bare), ("backend", Small())],
    ids=["grid", "signs", "bare-algorithm", "backend-that-refuses"],
)
def test_the_least_that_will_do(kind, thing):
    assert fault_of(kind, thing) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_built_ins_are_without_fault(kind):
    things = [registry().get(kind, name) for name in registry().names(kind)]
    if kind == "accelerator" and find_spec("woqfx_native._core") is None:
        pytest.skip("woqfx was installed without a compiler")
    assert things and [fault_of(kind, thing) for thing in things] == [""] * len(things)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("thing", [None, 4, "nf4", object, [], Grid], ids=repr)
def test_anything_else_is_refused(kind, thing):
    assert fault_of(kind, thing)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("full", [True, False])
def test_integer_grids_of_any_size(bits, full):
    attributes = {"name": "any", "bits": bits, "full_range": full}
    assert fault_of("dtype", type("Any", (IntegerGrid,), attributes)()) == ""


@pytest.mark.parametrize("count", [2, 3, 16, 17, 255, 256])
def test_codebooks_of_any_size(count):
    attributes = {"name": "any", "bits": 8, "table": tuple(range(-1, count - 1))}
    assert fault_of("dtype", type("Any", (Codebook,), attributes)()) == ""


@pytest.mark.parametrize(
    ("name", "good"),
    [(name, True) for name in ("a", "int4_clip", "fp4-e2m1.v2", "a" * 64)]
    + [(name, False) for name in ("", "a" * 65, "4bit", "Int4", "a b", "a/b", "a\n", "é", 7, None)],
)
def test_names(name, good):
    assert (fault_of("dtype", type("Named", (IntegerGrid,), {"name": name, "bits": 4})()) == "") is good


def test_a_repr_that_raises_is_no_way_out():
    class Thorny:
        def __repr__(self):
            raise RuntimeError("ouch")

    assert "ouch" in fault_of("dtype", Thorny())
