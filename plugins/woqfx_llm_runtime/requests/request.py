"""A request: rows that are generated in step with each other, as in one call of `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from woqfx_llm_runtime._core import Engine
    from woqfx_llm_runtime.requests.slots import Slots

#: From the tokens so far int64 [B, n] and logits float32 [B, V] to the next tokens int64 [B].
Choose = Callable[[Tensor, Tensor], Tensor]
#: From the tokens so far int64 [B, n] to bool [B]: which rows end here.
Ends = Callable[[Tensor], Tensor]
#: From the tokens of a row int64 [n] to guesses int64 [k] of those that come next, or none.
Draft = Callable[[Tensor], Tensor]

_ROOM = 64

FinishReason = Literal["stop", "length", "cancelled"]


class Piece(NamedTuple):
    """What a row asks of the next step: `tokens` go into `slot`, and the logits of the last `wanted` are needed.

    A `source` int64 [n] is to be encoded into the slot before.
    """

    row: int
    slot: int
    tokens: Tensor
    wanted: int
    source: Tensor | None

    @property
    def cost(self) -> int:
        """Tokens of prompts and sources."""
        return len(self.tokens) - self.wanted + (0 if self.source is None else len(self.source))


@dataclass(frozen=True)
class _State:
    """How far a request is: columns of its history that are final, and the rows that go on."""

    columns: int
    running: tuple[bool, ...]


class Request:
    """`prompt` int64 [B, n] padded on the left; row b begins in column `starts[b]`. At most `most` columns in all.

    Rows advance together, one token for each round, and each round's tokens are chosen at once: so random numbers are
    drawn as transformers draws them. A row that has ended is filled with `pad`, and computes nothing. With `draft`, for
    one row, guessed tokens are computed along with the last one, and those that are chosen anyway come in one round.
    `sources`, int64 [n] for each row, are what the encoder reads, of a model that has one.

    Whoever makes the scheduler's steps calls `pieces`, `feed` and `advance`; others look at `columns` and `finished`.
    A step may be interrupted between any two statements: what counts as done is one assignment to `_state`, and what a
    slot holds is asked of the engine.
    """

    def __init__(
        self,
        prompt: Tensor,
        starts: Sequence[int],
        *,
        most: int,
        pad: int,
        choose: Choose,
        ends: Ends,
        draft: Draft | None = None,
        sources: Sequence[Tensor] | None = None,
    ) -> None:
        self._starts, self._most, self._pad = tuple(starts), most, pad
        self._choose, self._ends, self._draft = choose, ends, draft
        self._sources = sources
        self._history = _with_room(prompt)
        self.prompt_columns = prompt.shape[1]
        self._state = _State(prompt.shape[1], (True,) * len(prompt))
        self._slots: dict[int, int] = {}
        self._logits: dict[int, Tensor] = {}
        self._guess: Tensor | None = None
        self.cancelled = False
        self.error: BaseException | None = None

    @property
    def columns(self) -> int:
        """How many columns of `tokens` are final."""
        return self._state.columns

    @property
    def tokens(self) -> Tensor:
        """All tokens so far, int64 [B, columns]."""
        columns = self._state.columns  # first: the history is replaced by a longer one before the state tells of more
        return self._history[:, :columns]

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        state = self._state
        return self.cancelled or self.error is not None or state.columns >= self._most or not any(state.running)

    @property
    def reason(self) -> FinishReason:
        """Why it has finished."""
        if self.cancelled:
            return "cancelled"
        return "length" if any(self._state.running) else "stop"

    def abandon(self) -> None:
        """Nobody waits for it any more. Takes no lock: the garbage collector may call it anywhere."""
        self.cancelled = True

    def _row(self, row: int, columns: int) -> Tensor:
        return self._history[row, self._starts[row] : columns]

    def pieces(self, engine: Engine, slots: Slots, budget: int, restart: int | None) -> Iterator[Piece]:
        """What its rows ask of the next step; of prompts, at most about `budget` tokens together.

        With `restart`, a sequence that grows beyond so many tokens is computed again from its beginning.
        """
        columns, running = self._state.columns, self._state.running
        for row, goes_on in enumerate(running):
            if not goes_on or row in self._logits:
                continue
            tokens = self._row(row, columns)
            source = None if self._sources is None else self._sources[row]
            slot = self._slots.get(row)
            if slot is None:
                if budget <= 0 or (slot := slots.open(tokens, source)) is None:
                    continue
                self._slots[row] = slot
            if source is not None:
                if engine.source_length(slot):
                    source = None
                elif budget <= 0:
                    continue
                else:
                    budget -= len(source)
            held = engine.length(slot)
            if held >= len(tokens) or (restart is not None and held <= restart < len(tokens)):
                held = 0 if restart is not None and len(tokens) > restart else len(tokens) - 1
                engine.trim(slot, held)
            fresh = tokens[held:]
            if len(fresh) > 1:
                if budget <= 0:
                    continue
                fresh = fresh[:budget]
                budget -= len(fresh)
            if held + len(fresh) < len(tokens):
                yield Piece(row, slot, fresh, 0, source)
                continue
            self._guess = self._draft(tokens)[: self._most - columns - 1] if self._draft else None
            if self._guess is None:
                yield Piece(row, slot, fresh, 1, source)
            else:
                yield Piece(row, slot, torch.cat([fresh, self._guess]), 1 + len(self._guess), source)

    def feed(self, piece: Piece, logits: Tensor) -> None:
        """A step has computed a piece: `logits` float32 [wanted, V]."""
        if piece.wanted:
            self._logits[piece.row] = logits

    def advance(self, engine: Engine, slots: Slots) -> None:
        """Choose the next tokens, if the logits of all rows are there."""
        state = self._state
        if any(goes_on and row not in self._logits for row, goes_on in enumerate(state.running)):
            return
        ready, self._logits = self._logits, {}
        if self._guess is not None:
            state = self._follow(ready[0], self._guess, engine)
        else:
            state = self._next(state, self._together(ready))
        for row, slot in tuple(self._slots.items()):
            if state.running[row]:
                slots.grown(slot, self._row(row, state.columns))
            else:
                slots.close(self._slots.pop(row))
        self._state = state

    def _together(self, ready: dict[int, Tensor]) -> Tensor:
        rows = len(self._history)
        if rows == 1:
            return ready[0]
        logits = torch.zeros(rows, next(iter(ready.values())).shape[-1])
        for row, found in ready.items():
            logits[row] = found[0]
        return logits

    def _next(self, state: _State, logits: Tensor) -> _State:
        """Choose one token for each row."""
        columns = state.columns
        if columns == self._history.shape[1]:
            self._history = _with_room(self._history)
        chosen = self._choose(self._history[:, :columns], logits)
        running = torch.tensor(state.running)
        self._history[:, columns] = torch.where(running, chosen, self._pad)
        running &= ~self._ends(self._history[:, : columns + 1])
        return _State(columns + 1, tuple(running.tolist()))

    def _follow(self, logits: Tensor, guess: Tensor, engine: Engine) -> _State:
        """Choose tokens one after the other for as long as they were guessed; the slot keeps what came true."""
        state = self._state
        for offset in range(len(logits)):
            state = self._next(state, logits[offset : offset + 1])
            if not all(state.running) or state.columns >= self._most or offset == len(guess):
                break
            if self._history[0, state.columns - 1] != guess[offset]:
                break
        engine.trim(self._slots[0], state.columns - self._starts[0] - 1)
        return state

    def release(self, slots: Slots) -> None:
        """Give its slots back: it has finished, or must wait and compute them again."""
        self._logits = {}
        while self._slots:
            _, slot = self._slots.popitem()
            slots.close(slot)


def _with_room(tokens: Tensor) -> Tensor:
    """Tokens int64 [B, n] in front of as many free columns: what was asked for at most may be far from what comes."""
    with torch.inference_mode(False):  # another thread may go on writing, in or out of that mode
        free = torch.zeros(len(tokens), tokens.shape[1] + _ROOM, dtype=torch.int64)
        return torch.cat([tokens.to(torch.int64), free], dim=1)
