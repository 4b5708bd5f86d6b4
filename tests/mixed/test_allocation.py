"""Spending a budget over layers, against trying everything."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woqfx.mixed.allocation import Choice, allocate

CHOICES = st.lists(
    st.lists(
        st.builds(Choice, st.just("x"), st.integers(1, 20), st.integers(0, 100).map(float)), min_size=1, max_size=4
    ),
    min_size=1,
    max_size=4,
).map(lambda layers: {f"layer{number}": options for number, options in enumerate(layers)})


def total(chosen):
    return sum(choice.nbytes for choice in chosen.values()), sum(choice.cost for choice in chosen.values())


def best(choices, budget):
    """The least cost of all that fit, by trying everything."""
    sums = [(sum(c.nbytes for c in each), sum(c.cost for c in each)) for each in product(*choices.values())]
    return min((cost for nbytes, cost in sums if nbytes <= budget), default=None)


@given(CHOICES, st.integers(0, 100))
def test_the_budget_is_kept_and_nothing_within_it_is_much_better(choices, budget):
    chosen = allocate(choices, budget)
    assert chosen.keys() == choices.keys() and all(chosen[name] in choices[name] for name in choices)
    nbytes, cost = total(chosen)
    least = sum(min(choice.nbytes for choice in options) for options in choices.values())
    assert nbytes <= max(budget, least)
    if budget >= least:
        # What is lost to the last step that did not fit is at most what the steepest step gains.
        steepest = max(choice.cost for options in choices.values() for choice in options)
        assert best(choices, budget) <= cost <= best(choices, budget) + steepest


@given(CHOICES, st.integers(1, 200).map(lambda eighths: eighths / 8))
def test_it_is_optimal_at_every_size_that_a_price_per_byte_leads_to(choices, price):
    paid = {
        name: min(options, key=lambda c: (c.cost + price * c.nbytes, c.nbytes)) for name, options in choices.items()
    }
    budget, cost = total(paid)
    assert total(allocate(choices, budget))[1] == cost == best(choices, budget)


def test_bytes_go_where_they_do_most_good():
    choices = {
        "deaf": [Choice("4", 4, 10.0), Choice("8", 8, 9.0)],
        "keen": [Choice("4", 4, 10.0), Choice("8", 8, 2.0)],
    }
    assert {name: choice.what for name, choice in allocate(choices, 12).items()} == {"deaf": "4", "keen": "8"}


def test_a_choice_that_a_mixture_beats_is_left_out():
    options = [Choice("4", 4, 10.0), Choice("5", 5, 9.9), Choice("6", 6, 1.0)]
    assert [allocate({"a": options}, budget)["a"].what for budget in (4, 5, 6)] == ["4", "4", "6"]


@pytest.mark.parametrize("budget", [0, 3, 7])
def test_where_nothing_fits_the_smallest_is_chosen(budget):
    choices = {"a": [Choice("8", 8, 1.0), Choice("4", 4, 2.0)], "b": [Choice("4", 4, 2.0)]}
    assert {name: choice.what for name, choice in allocate(choices, budget).items()} == {"a": "4", "b": "4"}


def test_of_equals_the_first_is_served_first():
    choices = {name: [Choice("4", 4, 10.0), Choice("8", 8, 2.0)] for name in "cab"}
    assert {name: choice.what for name, choice in allocate(choices, 16).items()} == {"c": "8", "a": "4", "b": "4"}
