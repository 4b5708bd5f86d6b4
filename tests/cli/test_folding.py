"""Many layers in few lines: nothing is lost, and only what is alike is put together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woqfx.cli.folding import fold


def folded(names, alike=lambda name: None):
    return [(group.name, group.times) for group in fold(names, lambda name: name, alike)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["lm_head"], [("lm_head", "")]),
        ([f"h.{n}.fc" for n in range(12)], [("h.{0-11}.fc", "x12")]),
        (["h.0.fc", "h.2.fc", "h.3.fc", "h.7.fc"], [("h.{0,2-3,7}.fc", "x4")]),
        (["h.0.a", "h.0.b", "h.1.a", "h.1.b"], [("h.{0-1}.a", "x2"), ("h.{0-1}.b", "x2")]),
        ([f"h.{i}.e.{j}.w" for i in range(2) for j in range(3)], [("h.{0-1}.e.{0-2}.w", "x6")]),
        (["0", "1", "2.weight"], [("0", ""), ("1", ""), ("2.weight", "")]),
        (["fc1", "fc2"], [("fc1", ""), ("fc2", "")]),
    ],
    ids=["one", "run", "gaps", "two kinds", "experts", "bare", "numbers in words"],
)
def test_names(names, expected):
    assert folded(names) == expected


def test_what_differs_stays_apart():
    names = [f"h.{n}.fc" for n in range(4)]
    assert folded(names, lambda name: name == "h.2.fc") == [("h.{0-1,3}.fc", "x3"), ("h.2.fc", "")]


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from("ab")), unique=True))
def test_everything_is_in_exactly_one_fold(layers):
    names = [f"h.{number}.{letter}" for number, letter in layers]
    groups = fold(names, lambda name: name, lambda name: None)
    assert sorted(name for group in groups for name in group.members) == sorted(names)
    assert len({group.name for group in groups}) == len(groups) == len({letter for _, letter in layers})
