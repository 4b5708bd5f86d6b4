"""What calibration data show of the inputs of weights: sums over tokens, the same for any number of threads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from woqfx.algorithm import Statistics
from woqfx.blocks.importance import Importance

if TYPE_CHECKING:
    from woqfx.blocks.block import Block

#: Moments that are kept for later, in bytes of one block.
_KEPT = 1 << 29


@dataclass(frozen=True)
class Group:
    """Weights that multiply the same inputs, `uses` times in a call; 0 for experts, whose uses depend on the data."""

    names: tuple[str, ...]
    uses: int


def find_groups(block: Block, names: Sequence[str]) -> tuple[Group, ...]:
    """Group weights by the inputs that they multiply, in the order in which the block's first call uses them."""
    seen: dict[str, list[Tensor]] = {}

    def see(name: str, expert: int, x: Tensor) -> None:
        seen.setdefault(name, []).append(x)  # held, so that its id stays its own

    with torch.no_grad():
        block.observe(block.calls[0], names, see)
    by_inputs: dict[tuple[int, ...], list[str]] = {}
    for name, inputs in seen.items():
        by_inputs.setdefault(tuple(id(x) for x in inputs), []).append(name)
    groups = [
        Group(tuple(alike), 0 if any(block.parameters[name].ndim > 2 for name in alike) else len(inputs))
        for inputs, alike in by_inputs.items()
    ]
    return (*groups, *(Group((name,), 0) for name in names if name not in seen))


class Gathered:
    """Statistics of a block in float, kept for whoever asks next; a fold only rescales them."""

    def __init__(self) -> None:
        self._found: dict[str, list[Statistics]] = {}

    def get(self, block: Block, groups: Sequence[Group]) -> dict[str, list[Statistics]]:
        """The statistics of these groups' weights: those that are not known yet are collected."""
        missing = [group for group in groups if any(name not in self._found for name in group.names)]
        found = collect(block, missing) if missing else {}
        if sum(moments_size(block, group.names[0]) for group in groups) <= _KEPT:
            self._found |= found
        return {name: found.get(name) or self._found[name] for group in groups for name in group.names}

    def rescale(self, columns: Mapping[str, Tensor]) -> None:
        """The input channels of these weights are divided by such numbers [..., K] from now on."""
        done: dict[int, list[Statistics]] = {}
        for name, scale in columns.items():
            if name in self._found:
                before = self._found[name]
                per_expert = scale if scale.ndim > 1 else scale.expand(len(before), -1)
                if id(before) not in done:
                    done[id(before)] = [_divided(one, by) for one, by in zip(before, per_expert, strict=True)]
                self._found[name] = done[id(before)]


def collect(
    block: Block,
    groups: Sequence[Group],
    weights: Mapping[str, Tensor] | None = None,
    importance: Importance | None = None,
) -> dict[str, list[Statistics]]:
    """Statistics of the inputs of the weights of these groups, other weights replaced: a list of one, or of experts.

    Weights of one group share one list, unless tokens count by their `importance` for each of them.
    """
    if importance:
        groups = [Group((name,), group.uses) for group in groups for name in group.names]
    uses = {group.names[0]: group.uses for group in groups}
    sums = {name: [_Sums(block.parameters[name].shape[-1]) for _ in range(_experts(block, name))] for name in uses}

    turns = _Turns()

    def one(number: int) -> None:
        seen: list[tuple[str, int, Tensor, Tensor | None]] = []
        left = Counter(uses)
        counts = {name: iter(own[number]) for name, own in (importance or {}).items()}

        def see(name: str, expert: int, x: Tensor) -> None:
            rows = x.detach().reshape(-1, x.shape[-1]).float()
            counted = next(counts[name], None) if name in counts else None
            if counted is not None and len(counted) != len(rows):
                counted = None  # others than in float: tokens that are routed otherwise count alike
            seen.append((name, expert, rows, counted))
            left[name] -= 1
            if all(uses.values()) and not any(left.values()):
                raise _AllSeen

        try:
            with torch.no_grad(), suppress(_AllSeen):
                block.observe(block.calls[number], list(uses), see, weights)
        finally:
            with turns.turn(number):
                for name, expert, rows, counted in seen:
                    sums[name][expert].add(rows, counted)

    block.map(one, range(len(block.calls)))
    found = {name: [entry.statistics() for entry in sums.pop(name)] for name in uses}
    return {name: found[group.names[0]] for group in groups for name in group.names}


def moments_size(block: Block, name: str) -> int:
    """Bytes that the second moments of a weight's inputs take."""
    return 4 * int(block.parameters[name].shape[-1]) ** 2 * _experts(block, name)


def _experts(block: Block, name: str) -> int:
    shape = block.parameters[name].shape
    return shape[0] if len(shape) == 3 else 1


def _divided(found: Statistics, scale: Tensor) -> Statistics:
    """The statistics of x / scale."""
    moments = found.moments / scale / scale.unsqueeze(-1)
    return Statistics(found.tokens, moments, found.mean / scale, found.mean_abs / scale)


class _AllSeen(BaseException):
    """The rest of a block need not be run. No `Exception`, so that no model catches it."""


class _Turns:
    """Threads that work side by side, and add what they found in the order of their numbers."""

    def __init__(self) -> None:
        self._next = 0
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Wait until those of smaller numbers have had their turn; with an error too, for others wait for this one."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == number)
        try:
            yield
        finally:
            with self._changed:
                self._next += 1
                self._changed.notify_all()


#: Inputs of at least this width have their outer products summed in squares of this width, on and below the diagonal.
_SQUARE = 384


class _Sums:
    """Running sums of rows [n, K] and of their outer products, of which one half tells the other."""

    def __init__(self, k: int) -> None:
        self.tokens = 0
        self.outer, self.total, self.absolute = torch.zeros(k, k), torch.zeros(k), torch.zeros(k)

    def add(self, rows: Tensor, importance: Tensor | None = None) -> None:
        """Rows [n, K], whose outer products count by their importance [n]."""
        self.tokens += len(rows)
        self.total += rows.sum(0)
        self.absolute += rows.abs().sum(0)
        if importance is not None:
            rows = rows * importance.sqrt().unsqueeze(1)
        for start in range(0, rows.shape[1], _SQUARE):
            part = slice(start, start + _SQUARE)
            self.outer[part, : part.stop].addmm_(rows[:, part].T, rows[:, : part.stop])

    def statistics(self) -> Statistics:
        n = max(1, self.tokens)
        moments = self.outer.tril_().div_(n)
        moments += moments.tril(-1).T
        return Statistics(self.tokens, moments, self.total / n, self.absolute / n)
