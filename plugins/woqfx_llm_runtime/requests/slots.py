"""The slots of an engine, and what those that are not in use still hold."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Mapping

    from woqfx_llm_runtime._core import Engine

#: Of one sequence, int64 [n].
Tokens = NDArray[np.int64]

#: How many sequences that have ended are remembered, so that one with the same beginning need not compute it again.
REMEMBERED = 16
#: Fewer tokens than these are not worth waiting for, or copying.
_WORTHWHILE = 8


class Sequence(Protocol):
    """Tokens so far, and what the encoder read before them, of a model that has one."""

    @property
    def tokens(self) -> Tokens:
        """All so far."""

    @property
    def source(self) -> Tokens | None:
        """What the encoder reads."""


class _Past(NamedTuple):
    """What a sequence is at a moment."""

    tokens: Tokens
    source: Tokens | None

    @property
    def before(self) -> int:
        """How many tokens the source has."""
        return 0 if self.source is None else len(self.source)

    def common(self, tokens: Tokens, source: Tokens | None) -> int:
        """How many tokens both begin with, those of a source included, which is shared as a whole or not at all."""
        if self.source is not None and source is not None and not np.array_equal(self.source, source):
            return 0
        return self.before + common_prefix(self.tokens, tokens)


class Slots:
    """Gives each sequence a slot that holds as much of its beginning as is known.

    A conversation that goes on, a system prompt, the rows of a batch that begin alike, a source that is asked about
    again: their keys and values are computed once. `reusable` bounds the length of what is shared, for models whose
    keys depend on how long the sequence was.
    """

    def __init__(self, engine: Engine, reusable: int | None) -> None:
        self._engine, self._reusable = engine, reusable
        self._lock = threading.Lock()
        self._live: dict[int, Sequence] = {}
        self._idle: OrderedDict[int, _Past] = OrderedDict()

    def open(self, sequence: Sequence) -> int | None:
        """A slot for a sequence of n tokens, which holds at most n - 1 of them; None: ask again later.

        Later, because another sequence is just now computing a beginning that this one shares. A slot may hold the
        sequence's source, or have none yet. `sequence` may grow until it is closed.
        """
        sought = _Past(sequence.tokens[:-1], sequence.source)
        with self._lock:
            best, shared = self._longest(self._idle, sought)
            other, promised = self._longest(self._live, sought)
            ready = 0 if other is None else min(promised, self._held(other))
            if promised >= max(shared, ready) + _WORTHWHILE:
                return None
            if other is not None and ready > shared:
                slot = self._engine.copy(other, ready - sought.before)
            elif best is None or shared < _WORTHWHILE:
                slot = self._engine.create()
            elif shared == self._held(best):
                del self._idle[best]
                slot = best
            else:
                slot = self._engine.copy(best, shared - sought.before)
                self._idle.move_to_end(best)
            self._live[slot] = sequence
            return slot

    def _longest(self, among: Mapping[int, Sequence], sought: _Past) -> tuple[int | None, int]:
        best, shared = None, 0
        for slot, known in among.items():
            tokens = known.tokens
            common = sought.common(tokens, known.source)
            if self._reusable is not None and max(len(tokens), len(sought.tokens) + 1) > self._reusable:
                continue
            if common > shared:
                best, shared = slot, common
        return best, shared

    def _held(self, slot: int) -> int:
        """How many tokens a slot holds, those of its source included."""
        return self._engine.length(slot) + self._engine.source_length(slot)

    def close(self, slot: int) -> None:
        """A sequence has ended: its slot is remembered for what it holds, and the oldest one forgotten."""
        with self._lock:
            sequence = self._live.pop(slot)
            tokens = sequence.tokens[: self._engine.length(slot)]
            if len(tokens) + self._engine.source_length(slot) < _WORTHWHILE:
                self._engine.free(slot)
                return
            self._engine.trim(slot, len(tokens))  # guesses that did not come true
            self._idle[slot] = _Past(tokens.copy(), sequence.source)
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


def common_prefix(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences [n] and [m] begin with alike."""
    length = min(len(one), len(other))
    different = one[:length] != other[:length]
    return int(different.argmax()) if different.any() else length
