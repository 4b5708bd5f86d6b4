"""The slots of an engine, and what those that are not in use still hold."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from woqfx_llm_runtime._core import Engine

#: How many sequences that have ended are remembered, so that one with the same beginning need not compute it again.
REMEMBERED = 16
#: Fewer tokens than these are not worth waiting for, or copying.
_WORTHWHILE = 8


class Slots:
    """Gives each sequence a slot that holds as much of its beginning as is known.

    A conversation that goes on, a system prompt, the rows of a batch that begin alike: their keys and values are
    computed once. `reusable` bounds the length of what is shared, for models whose keys depend on how long the
    sequence was.
    """

    def __init__(self, engine: Engine, reusable: int | None) -> None:
        self._engine, self._reusable = engine, reusable
        self._lock = threading.Lock()
        self._live: dict[int, Tensor] = {}
        self._idle: OrderedDict[int, Tensor] = OrderedDict()

    def open(self, tokens: Tensor) -> int | None:
        """A slot for the sequence `tokens` int64 [n], which holds at most n - 1 of them; None: ask again later.

        Later, because another sequence is just now computing a beginning that this one shares.
        """
        with self._lock:
            best, shared = self._longest(self._idle, tokens)
            other, promised = self._longest(self._live, tokens)
            ready = 0 if other is None else min(promised, self._engine.length(other))
            if promised >= max(shared, ready) + _WORTHWHILE:
                return None
            if other is not None and ready > shared:
                slot = self._engine.copy(other, ready)
            elif best is None or shared < _WORTHWHILE:
                slot = self._engine.create()
            elif shared == len(self._idle[best]):
                del self._idle[best]
                slot = best
            else:
                slot = self._engine.copy(best, shared)
                self._idle.move_to_end(best)
            self._live[slot] = tokens
            return slot

    def _longest(self, among: dict[int, Tensor] | OrderedDict[int, Tensor], tokens: Tensor) -> tuple[int | None, int]:
        best, shared = None, 0
        for slot, known in among.items():
            common = common_prefix(known, tokens[:-1])
            if self._reusable is not None and max(len(known), len(tokens)) > self._reusable:
                continue
            if common > shared:
                best, shared = slot, common
        return best, shared

    def grown(self, slot: int, tokens: Tensor) -> None:
        """The sequence of a slot is now `tokens`."""
        self._live[slot] = tokens

    def close(self, slot: int) -> None:
        """A sequence has ended: its slot is remembered for what it holds, and the oldest one forgotten."""
        with self._lock:
            held = self._live.pop(slot)[: self._engine.length(slot)]
            if len(held) < _WORTHWHILE:
                self._engine.free(slot)
                return
            self._engine.trim(slot, len(held))  # guesses that did not come true
            self._idle[slot] = held.clone()
            if len(self._idle) > REMEMBERED:
                self._forget()

    def make_room(self) -> bool:
        """Forget the sequence that was not used for longest; False if none is remembered."""
        with self._lock:
            return self._forget()

    def forget_all(self) -> None:
        """Forget all that is remembered."""
        while self.make_room():
            pass

    def after_fork(self) -> None:
        """In the child, where nobody holds the lock."""
        self._lock = threading.Lock()

    def _forget(self) -> bool:
        if not self._idle:
            return False
        slot, _ = self._idle.popitem(last=False)
        self._engine.free(slot)
        return True


def common_prefix(one: Tensor, other: Tensor) -> int:
    """How many tokens two sequences [n] and [m] begin with alike."""
    length = min(len(one), len(other))
    different = torch.nonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
