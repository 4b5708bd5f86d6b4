"""The algorithms' own options as flags, and help that lists what is installed."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

import woqfx


@dataclass(frozen=True)
class Options:
    strength: float = woqfx.option(0.5, "How hard it tries.")
    rounds: int = woqfx.option(3, "How often it tries.")
    label: str = woqfx.option("a", "What it calls itself.")
    careful: bool = woqfx.option(True, "Whether it looks twice.")
    dtype: str = woqfx.option("x", "Has the name of a flag that is taken.")


@dataclass(frozen=True)
class OtherOptions:
    strength: float = woqfx.option(0.25, "How hard it tries.")
    rounds: bool = woqfx.option(False, "Of another type than the other's.")
    careful: bool = woqfx.option(True, "Whether it asks first.")


class First(woqfx.Algorithm):
    """Does one thing. And more."""

    name = "first"
    Options = Options

    def round(self, layer):
        return super().round(layer)


class Second(woqfx.Algorithm):
    """Does another thing."""

    name = "second"
    Options = OtherOptions

    def round(self, layer):
        return super().round(layer)


@pytest.fixture
def algorithms():
    class Plugin:
        @woqfx.hookimpl
        def woqfx_algorithms(self):
            return [First, Second]

    woqfx.register(Plugin(), "algorithms of a test")
    yield
    woqfx.unregister("algorithms of a test")


def options(run, model_folder, *flags):
    result = run("plan", model_folder, *flags, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["options"]


@pytest.mark.usefixtures("algorithms")
class TestFlags:
    def test_only_what_was_given_reaches_the_algorithm(self, run, model_folder):
        assert options(run, model_folder, "--algorithm", "first") == {}

    def test_types(self, run, model_folder):
        flags = ["--strength", "2", "--rounds", "7", "--label", "b", "--no-careful"]
        assert options(run, model_folder, "--algorithm", "first", *flags) == {
            "strength": 2.0,
            "rounds": 7,
            "label": "b",
            "careful": False,
        }

    def test_a_name_that_is_taken_has_the_algorithm_in_front(self, run, model_folder):
        assert options(run, model_folder, "--algorithm", "first", "--first-dtype", "y") == {"dtype": "y"}
        assert options(run, model_folder, "--algorithm", "second", "--second-rounds") == {"rounds": True}

    def test_one_flag_for_two_algorithms_that_agree(self, run, model_folder):
        assert options(run, model_folder, "--algorithm", "second", "--strength", "1") == {"strength": 1.0}

    def test_an_option_of_another_algorithm_is_refused(self, run, model_folder):
        result = run("plan", model_folder, "--algorithm", "second", "--label", "b")
        assert result.exit_code == 2
        assert "second has no option 'label'; its options: careful, rounds, strength" in result.stderr

    def test_a_value_of_the_wrong_type_is_a_usage_error(self, run, model_folder):
        assert run("plan", model_folder, "--algorithm", "first", "--rounds", "few").exit_code == 2

    def test_help_says_default_and_owner(self, run):
        text = " ".join(run("quantize", "--help").stdout.split())
        assert "and second: --strength X How hard it tries. [default: 0.5 for first, 0.25 for second]" in text
        assert (
            "--careful / --no-careful Of first: Whether it looks twice. Of second: Whether it asks first. "
            "[default: careful]"
        ) in text
        assert "second Does another thing." in text
        assert "first Does one thing." in text


def test_help_lists_every_name_that_is_installed(run):
    text = run("quantize", "--help").stdout
    for kind in ("dtype", "algorithm", "compute dtype", "backend"):
        for name in woqfx.registry().names(kind):
            assert f"\n  {name} " in text
