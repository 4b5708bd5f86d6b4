"""Mixed precision: spending a budget of bits over layers, where they do most good.

Each layer has a few choices, each with a size and a cost: how much it harms the model. The sum of costs is to be least
while the sum of sizes stays within the budget. On each layer's lower convex hull the gain per byte falls from choice to
choice, so taking the steps of all hulls in the order of their gain per byte is optimal but for the last few bytes (the
classical solution of such allocation problems: Shoham and Gersho, IEEE Trans. ASSP 36(9), 1988).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """Something that a layer could be stored as: its size in bytes, and what it costs the model, in any one unit."""

    what: T
    nbytes: int
    cost: float


def allocate(choices: Mapping[str, Sequence[Choice[T]]], budget: int) -> dict[str, Choice[T]]:
    """One choice for each layer, of the least total cost that was found within `budget` bytes.

    Where even the smallest choices take more than the budget, they are what is chosen. Depends on nothing but its
    arguments: of equal gains, the layer that comes first is served first.
    """
    hulls = {name: _hull(options) for name, options in choices.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(choice.nbytes for choice in chosen.values())
    steps = [
        (-_gain(before, after), number, place, name)
        for number, (name, hull) in enumerate(hulls.items())
        for place, (before, after) in enumerate(pairwise(hull), 1)
    ]
    for _, _, place, name in sorted(steps):
        more = hulls[name][place].nbytes - chosen[name].nbytes
        if more <= left:  # a later step of a layer whose earlier one did not fit may still, and is as good
            chosen[name] = hulls[name][place]
            left -= more
    return chosen


def _hull(options: Sequence[Choice[T]]) -> list[Choice[T]]:
    """The choices that are not worth less than a mixture of two others, the smallest first."""
    hull: list[Choice[T]] = []
    for option in sorted(options, key=lambda option: (option.nbytes, option.cost)):
        if hull and option.cost >= hull[-1].cost:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _gain(before: Choice[T], after: Choice[T]) -> float:
    return (before.cost - after.cost) / (after.nbytes - before.nbytes)
