from __future__ import annotations

from dataclasses import dataclass

import pytest

import woqfx
from woqfx.blocks.composition import blamed, read_composition
from woqfx.errors import PluginError, SchemeError, UnknownNameError, WeightError


@dataclass(frozen=True)
class Alpha:
    steps: int = woqfx.option(20, "Steps.")
    duo: bool = woqfx.option(True, "Both.")


@dataclass(frozen=True)
class Beta:
    steps: int = woqfx.option(5, "Steps.")
    damp: float = woqfx.option(0.01, "Damping.")


class Rescaler(woqfx.Algorithm):
    name = "rescaler"
    needs_data = True
    Options = Alpha

    def transform(self, block):
        return ()

    def round(self, layer):
        return super().round(layer)


class Rounder(woqfx.Algorithm):
    name = "rounder"
    needs_data = True
    Options = Beta

    def round(self, layer):
        return super().round(layer)


class Refiner(woqfx.Algorithm):
    name = "refiner"
    needs_data = True

    def refine(self, block, quantized):
        return {}


@pytest.fixture(autouse=True)
def plugin():
    class Plugin:
        @woqfx.hookimpl
        def woqfx_algorithms(self):
            return [Rescaler, Rounder, Refiner]

    woqfx.register(Plugin(), "three")
    yield
    woqfx.unregister("three")


def names(parts):
    return [part.name for part in parts]


@pytest.mark.parametrize(
    ("name", "transforms", "rounds", "refines", "with_data"),
    [
        ("rtn", [], "rtn", [], False),
        ("rescaler", ["rescaler"], "rescaler", [], True),
        ("rescaler+rounder", ["rescaler"], "rounder", [], True),
        ("rounder+rescaler", ["rescaler"], "rescaler", [], True),
        ("rescaler+rounder+refiner", ["rescaler"], "rounder", ["refiner"], True),
        ("rescaler+rtn", ["rescaler"], "rtn", [], False),
        ("refiner", [], "refiner", ["refiner"], False),
    ],
)
def test_each_step_has_its_parts(name, transforms, rounds, refines, with_data):
    found = read_composition(name, {})
    assert names(found.transformers) == transforms
    assert found.rounder.name == rounds
    assert names(found.refiners) == refines
    assert found.rounds_with_data is with_data
    assert found.needs_data == (name != "rtn")


def test_options_go_to_the_part_that_has_them():
    found = read_composition("rescaler+rounder", {"duo": False, "damp": 0.1, "rounder.steps": 7})
    assert [part.options for part in found.parts] == [Alpha(20, False), Beta(7, 0.1)]
    assert read_composition("rounder", {"steps": 3}).rounder.options == Beta(3)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("rescaler+rounder", {"steps": 3}, "write rescaler.steps or rounder.steps"),
        ("rescaler+rounder", {"stepps": 3}, "rescaler.duo, rescaler.steps, rounder.damp, rounder.steps"),
        ("rescaler+rounder", {"rounder.duo": True}, "rounder has no option 'duo'; its options: damp, steps"),
        ("rescaler+rounder", {"damp": "much"}, "damp of algorithm rounder takes float, not 'much'"),
        ("rounder", {"duo": True}, "rounder has no option 'duo'"),
        ("rounder+rounder", {}, "names 'rounder' twice"),
    ],
)
def test_options_that_do_not_fit_are_explained(name, options, match):
    with pytest.raises(SchemeError, match=match):
        read_composition(name, options)


@pytest.mark.parametrize("name", ["rescaler+rouner", "rescaler rounder"])
def test_a_part_that_is_not_there_is_named(name):
    with pytest.raises(UnknownNameError, match="there is no algorithm"):
        read_composition(name, {})


@pytest.mark.parametrize("name", ["rescaler+", "+rtn", ""])
def test_an_empty_part_is_refused(name):
    with pytest.raises(SchemeError, match="has an empty part"):
        read_composition(name, {})


def test_whoever_fails_is_named_and_own_errors_go_through():
    (part,) = read_composition("rounder", {}).parts
    message = r"layer 7: algorithm rounder \(plugin 'three'\) failed: KeyError\(1\)"
    with pytest.raises(PluginError, match=message), blamed(part, "layer 7"):
        raise KeyError(1)
    with pytest.raises(WeightError, match="as it is"), blamed(part, "layer 7"):
        raise WeightError("as it is")
