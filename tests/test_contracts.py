"""What the registry checks of what plugins provide, called directly. Through real plugins: test_bad_plugins.py."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from woqfx import Accelerator, Algorithm, Backend, Codebook, ComputeDType, DType, Format, IntegerGrid, Support
from woqfx.calibration.contract import CalibrationSet
from woqfx.contracts import doubts_of, fault_of
from woqfx.plugins import KINDS, registry


class Grid(IntegerGrid):
    name, bits = "grid", 4


class Signs(Codebook):
    """The smallest table that there is."""

    name, bits, table = "signs", 1, (-1.0, 1.0)


class Bare(Algorithm):
    name = "bare"

    def round(self, layer):
        return super().round(layer)


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
    assert [doubts_of(thing) for thing in things] == [[]] * len(things)


def nothing(*_: object) -> object:
    return {}


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"quantise_layer": nothing}, r"woqfx calls transform, round and refine, and it has quantise_layer$"),
        ({"needs_data": True}, r"and it has none of them$"),
        ({"transform": nothing}, r"transform would never be called: set needs_data = True"),
        ({"transform": nothing, "refine": nothing}, r"transform and refine would never be called"),
        ({"survey": nothing, "round": nothing}, r"survey would never be called: give it a property surveys"),
        ({"round": nothing}, ""),
        ({"transform": nothing, "needs_data": True}, ""),
        ({"transform": nothing, "needs_data": property(nothing)}, ""),
        ({"survey": nothing, "surveys": property(nothing), "refine": nothing, "needs_data": True}, ""),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_algorithm_of_which_nothing_would_be_called_is_refused(members, says):
    found = fault_of("algorithm", type("Odd", (Algorithm,), {"name": "odd", **members}))
    assert re.search(says, found) if says else found == ""


@pytest.mark.parametrize(
    ("base", "member", "meant"),
    [
        (Bare, "tranform", "transform"),
        (Bare, "weigh_tokens", "weighs_tokens"),
        (Grid, "fitt", "fit"),
        (Grid, "full_rang", "full_range"),
        (Signs, "tables", ""),  # its table is its own
        (Small, "suports", ""),
        (Small, "obstacle", "obstacles"),
        (Small, "options", "Options"),
        (Small, "_obstacle", ""),
        (Small, "helper", ""),
    ],
)
def test_a_name_that_is_nearly_one_of_the_contract_is_doubted(base, member, meant):
    odd = type("Odd", (base,), {member: nothing})
    doubts = doubts_of(odd if issubclass(odd, Algorithm) else odd())
    assert [f"did you mean {meant!r}?" in doubt for doubt in doubts] == [True] * bool(meant)


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
