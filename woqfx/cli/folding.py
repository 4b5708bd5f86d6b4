"""Folding the many layers of a model into a few lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")


@dataclass(frozen=True)
class Fold(Generic[T]):
    """Things whose names differ in their numbers alone: `model.layers.{0-29}.self_attn.q_proj`."""

    name: str
    members: tuple[T, ...]

    @property
    def times(self) -> str:
        """`x30`, or nothing for one."""
        return f"x{len(self.members)}" if len(self.members) > 1 else ""


def fold(things: Iterable[T], name: Callable[[T], str], alike: Callable[[T], Hashable]) -> list[Fold[T]]:
    """Put together what has the same name but for its numbers and the same `alike`, in the order of the first."""
    found: dict[Hashable, list[T]] = {}
    for thing in things:
        found.setdefault((_NUMBER.sub("#", name(thing)), alike(thing)), []).append(thing)
    return [Fold(_folded([name(thing) for thing in members]), tuple(members)) for members in found.values()]


def _folded(names: Sequence[str]) -> str:
    places = zip(*(map(int, _NUMBER.findall(name)) for name in names), strict=True)
    texts = iter([_ranges(sorted(set(numbers))) for numbers in places])
    return _NUMBER.sub(lambda _: next(texts), names[0])


def _ranges(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) + "}"
