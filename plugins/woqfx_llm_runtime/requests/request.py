"""A request: rows that are generated in step with each other, as in one call of `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from woqfx_llm_runtime.requests.drawing import Draw, stacked
from woqfx_llm_runtime.requests.slots import Tokens

if TYPE_CHECKING:
    from woqfx_llm_runtime._core import Engine
    from woqfx_llm_runtime.requests.choosing import Choose
    from woqfx_llm_runtime.requests.drawing import Drawer
    from woqfx_llm_runtime.requests.slots import Slots

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
    tokens: Tokens
    wanted: int
    source: Tokens | None

    @property
    def cost(self) -> int:
        """Tokens of prompts and sources."""
        return len(self.tokens) - self.wanted + (0 if self.source is None else len(self.source))


@dataclass(frozen=True)
class _State:
    """How far a request is: columns of its history that are final, and the rows that go on."""

    columns: int
    running: tuple[bool, ...]


@dataclass(frozen=True)
class _Row:
    """A row of a request as the sequence that it is."""

    request: Request
    number: int
    source: Tokens | None

    @property
    def tokens(self) -> Tokens:
        """Those so far, without padding."""
        return self.request.row(self.number)


class Request:
    """`prompt` int64 [B, n] padded on the left; row b begins in column `starts[b]`. At most `most` columns in all.

    Rows advance together, one token for each round, and each round's tokens are chosen at once: so random numbers are
    drawn as transformers draws them. Without `choose` it is the likeliest token that is taken, and `feed` gets tokens
    instead of logits. A row ends with a token of `stops`, or where `ends` says so; it is then filled with `pad`, and
    computes nothing. With `draft`, for one row, guessed tokens are computed along with the last one, and those that are
    chosen anyway come in one round. `sources`, int64 [n] for each row, are what the encoder reads, of a model that has
    one.

    Whoever makes the scheduler's steps calls `pieces`, `feed`, `draw` and `advance`; others look at `columns` and
    `finished`. A step may be interrupted between any two statements: what counts as done is one assignment to
    `_state`, and what a slot holds is asked of the engine.
    """

    def __init__(
        self,
        prompt: Tensor,
        starts: Sequence[int],
        *,
        most: int,
        pad: int,
        choose: Choose | None = None,
        stops: frozenset[int] = frozenset(),
        ends: Ends | None = None,
        draft: Draft | None = None,
        sources: Sequence[Tokens] | None = None,
    ) -> None:
        self._starts, self._most, self._pad = tuple(starts), most, pad
        self._choose, self._stops, self._ends, self._draft = choose, stops, ends, draft
        self._sources = sources
        self._history = _with_room(prompt.numpy())
        self.prompt_columns = prompt.shape[1]
        self._state = _State(prompt.shape[1], (True,) * len(prompt))
        self._slots: dict[int, int] = {}
        self._fed: dict[int, Tensor | Sequence[int]] = {}
        self._guess: Tokens | None = None
        self._draw: Draw | None = None
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
        return torch.from_numpy(self._history[:, :columns])

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        state = self._state
        return self.cancelled or self.error is not None or state.columns >= self._most or True not in state.running

    @property
    def reason(self) -> FinishReason:
        """Why it has finished."""
        if self.cancelled:
            return "cancelled"
        return "length" if any(self._state.running) else "stop"

    @property
    def takes_likeliest(self) -> bool:
        """Whether it needs no logits, but the tokens that have the largest."""
        return self._choose is None

    @property
    def keeps_logits(self) -> bool:
        """Whether logits that it is fed may be looked at after the step."""
        return self._choose is not None and self._choose.keeps_scores

    def abandon(self) -> None:
        """Nobody waits for it any more. Takes no lock: the garbage collector may call it anywhere."""
        self.cancelled = True

    def row(self, number: int) -> Tokens:
        """The tokens so far of one row, without padding."""
        columns = self._state.columns
        return self._history[number, self._starts[number] : columns]

    def pieces(self, engine: Engine, slots: Slots, budget: int, restart: int | None) -> Iterator[Piece]:
        """What its rows ask of the next step; of prompts, at most about `budget` tokens together.

        With `restart`, a sequence that grows beyond so many tokens is computed again from its beginning.
        """
        state = self._state
        for row, goes_on in enumerate(state.running):
            if not goes_on or row in self._fed:
                continue
            source = None if self._sources is None else self._sources[row]
            slot = self._slots.get(row)
            if slot is None:
                if budget <= 0 or (slot := slots.open(_Row(self, row, source))) is None:
                    continue
                self._slots[row] = slot
            if source is not None:
                if engine.source_length(slot):
                    source = None
                elif budget <= 0:
                    continue
                else:
                    budget -= len(source)
            tokens, held = self.row(row), engine.length(slot)
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
            self._guess = self._guessed(tokens, state) if self._draft else None
            if self._guess is None:
                yield Piece(row, slot, fresh, 1, source)
            else:
                yield Piece(row, slot, np.concatenate([fresh, self._guess]), 1 + len(self._guess), source)

    def _guessed(self, tokens: Tokens, state: _State) -> Tokens:
        assert self._draft is not None
        guess: Tokens = self._draft(torch.from_numpy(tokens))[: self._most - state.columns - 1].numpy()
        return guess

    def feed(self, piece: Piece, found: Tensor | Sequence[int]) -> None:
        """A step has computed a piece: logits float32 [wanted, V], or the `wanted` likeliest tokens.

        Unless it `keeps_logits`, they are used, or copied, before the next step.
        """
        if piece.wanted:
            waits = len(self._starts) > 1 and isinstance(found, Tensor)
            self._fed[piece.row] = found.clone() if waits and isinstance(found, Tensor) else found

    @property
    def _complete(self) -> bool:
        """Whether what the next tokens are chosen from is there for all rows."""
        return all(row in self._fed for row, goes_on in enumerate(self._state.running) if goes_on)

    def draw(self) -> Draw | None:
        """What the engine may draw before `advance`."""
        if self._draw is None and self._guess is None and self._choose is not None and self._complete:
            self._draw = self._prepared(self._choose, self._state.columns, self._fed, 0)
        return self._draw

    def advance(self, engine: Engine, slots: Slots, drawer: Drawer) -> None:
        """Choose the next tokens, if what they are chosen from is there for all rows."""
        if not self._complete:
            return
        state, fed = self._state, self._fed
        state = (
            self._next(state, fed, 0, drawer) if self._guess is None else self._follow(fed, self._guess, engine, drawer)
        )
        self._fed, self._draw = {}, None
        self._state = state
        if not all(state.running):
            for row in [row for row in self._slots if not state.running[row]]:
                slots.close(self._slots.pop(row))

    def _next(self, state: _State, fed: Mapping[int, Tensor | Sequence[int]], offset: int, drawer: Drawer) -> _State:
        """Choose one token for each row, from what stands at `offset`."""
        columns = state.columns
        if columns == self._history.shape[1]:
            self._history = _with_room(self._history)
        history = self._history
        chosen = self._chosen(columns, fed, offset, drawer)
        running = list(state.running)
        for row, goes_on in enumerate(running):
            history[row, columns] = token = chosen[row] if goes_on else self._pad
            running[row] = goes_on and token not in self._stops
        if self._ends is not None:
            ended = self._ends(torch.from_numpy(history[:, : columns + 1])).tolist()
            running = [goes_on and not end for goes_on, end in zip(running, ended, strict=True)]
        return _State(columns + 1, tuple(running))

    def _chosen(
        self, columns: int, fed: Mapping[int, Tensor | Sequence[int]], offset: int, drawer: Drawer
    ) -> Mapping[int, int] | Sequence[int]:
        """The next token of each row that goes on."""
        if self._choose is None:
            return {row: int(tokens[offset]) for row, tokens in fed.items()}
        draw = self._draw
        if draw is None:
            draw = self._prepared(self._choose, columns, fed, offset)
            drawer.draw([draw])
        return draw.result

    def _prepared(self, choose: Choose, columns: int, fed: Mapping[int, Tensor | Sequence[int]], offset: int) -> Draw:
        """What is drawn from, after the processors that come before."""
        tokens = torch.from_numpy(self._history[:, :columns])
        rows: list[Tensor | None] = [None] * len(self._starts)
        for row, found in fed.items():
            rows[row] = found[offset] if isinstance(found, Tensor) else None
        if choose.prepares:
            scores = choose.prepare(tokens, stacked(rows))
            rows = [None if row is None else one for row, one in zip(rows, scores, strict=True)]
        return Draw(choose, tokens, rows)

    def _follow(
        self, fed: Mapping[int, Tensor | Sequence[int]], guess: Tokens, engine: Engine, drawer: Drawer
    ) -> _State:
        """Choose tokens one after the other for as long as they were guessed; the slot keeps what came true."""
        state = self._state
        for offset in range(1 + len(guess)):
            state = self._next(state, fed, offset, drawer)
            if not all(state.running) or state.columns >= self._most or offset == len(guess):
                break
            if self._history[0, state.columns - 1] != guess[offset]:
                break
        engine.trim(self._slots[0], state.columns - self._starts[0] - 1)
        return state

    def release(self, slots: Slots) -> None:
        """Give its slots back: it has finished, or must wait and compute them again."""
        self._fed, self._draw = {}, None
        while self._slots:
            _, slot = self._slots.popitem()
            slots.close(slot)


def _with_room(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens [B, n] in front of as many free columns: what was asked for at most may be far from what comes."""
    rows, columns = tokens.shape
    roomy = np.zeros((rows, 2 * columns + _ROOM), dtype=np.int64)
    roomy[:, :columns] = tokens
    return roomy
