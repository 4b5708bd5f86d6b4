"""The steps of an engine, shared by all requests of all threads.

There is no thread of its own. Whoever waits for a token makes steps, if nobody else is making one, and each step serves
every request; so a process can fork, and ^C ends the one call that it interrupts.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from woqfx_llm_runtime.requests.drawing import Draw, Drawer
from woqfx_llm_runtime.requests.errors import ContextError, RequestError
from woqfx_llm_runtime.requests.request import Piece, Request
from woqfx_llm_runtime.requests.slots import Slots

if TYPE_CHECKING:
    from woqfx_llm_runtime._core import Engine

#: Tokens of prompts in one step: others wait no longer than these take, and so does ^C.
PROMPT_CHUNK = 512
#: Sequences in one step.
MOST_ROWS = 64


class Scheduler:
    """Runs requests on `engine`.

    `by_length` and `restarts` are for models whose rotation depends on the length of a sequence: beyond so many tokens
    nothing is shared and prompts are computed in one piece; with `restarts` a sequence that grows beyond is computed
    again. `out_of_memory` and `cancelled` are the engine's errors of these kinds.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        by_length: int | None = None,
        restarts: bool = False,
        out_of_memory: type[Exception],
        cancelled: type[Exception],
    ) -> None:
        self.engine, self.slots = engine, Slots(engine, by_length)
        self._chunk = PROMPT_CHUNK if by_length is None else 1 << 62
        self._restart = by_length if restarts else None
        self.out_of_memory, self._engine_cancelled = out_of_memory, cancelled
        self._drawer = Drawer(engine)
        self._scores = np.empty((0, engine.vocab_size), dtype=np.float32)
        self._begin()
        weak = weakref.WeakMethod(self._after_fork)
        os.register_at_fork(after_in_child=lambda: (method := weak()) and method())

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._requests: list[Request] = []
        self._parked: list[Request] = []  # they wait until there is memory for them

    def _after_fork(self) -> None:
        """The threads that waited are not in the child, and a lock may have been held by one of them."""
        given_up = self._requests
        self.slots.after_fork()
        self._begin()
        for request in given_up:
            request.error = RequestError("the process was forked while this request was under way: ask again")
            request.release(self.slots)

    def add(self, request: Request) -> None:
        """Take a request on. It goes forward when someone waits, for it or for another."""
        with self._changed:
            if not self._busy:
                self._sweep()
            self._requests.append(request)

    def wait(self, request: Request, columns: int) -> None:
        """Return when `request` has more than `columns` columns, or has finished. Raises what made it fail."""
        self._until(lambda: request.columns > columns or request.finished)
        if request.error is not None:
            raise request.error

    def cancel(self, request: Request) -> None:
        """End a request, from any thread; its slots are given back, after the step that is running."""
        request.abandon()
        with self._changed:
            if not self._busy:
                self._sweep()
            elif all(one.cancelled for one in self._requests):
                self.engine.cancel()
            self._changed.notify_all()

    def _until(self, ready: Callable[[], bool]) -> None:
        while True:
            with self._changed:
                while self._busy and not ready():
                    self._changed.wait()
                if ready():
                    return
                self._busy = True
            try:
                self._step()
            finally:
                with self._changed:
                    self._sweep()
                    self._busy = False
                    self._changed.notify_all()

    def _sweep(self) -> None:
        for request in [one for one in self._requests if one.finished]:
            request.release(self.slots)
            self._requests.remove(request)
            self._parked.clear()

    def _step(self) -> None:
        with self._changed:
            requests = [one for one in self._requests if not one.finished and one not in self._parked]
        pieces = self._pieces(requests)
        if pieces and not self._compute(pieces, requests):
            return
        self._advance(requests)

    def _advance(self, requests: list[Request]) -> None:
        """Choose tokens. What logits processors and stopping criteria raise, which are anyone's, ends their request."""
        draws: list[tuple[Request, Draw]] = []
        for request in requests:
            try:
                if (draw := request.draw()) is not None:
                    draws.append((request, draw))
            except Exception as error:
                request.error = error
        if draws:
            try:
                self._drawer.draw([draw for _, draw in draws])
            except Exception as error:  # not of whoever happens to make this step
                for request, _ in draws:
                    request.error = error
        for request in requests:
            try:
                if request.error is None:
                    request.advance(self.engine, self.slots, self._drawer)
            except Exception as error:
                request.error = error

    def _pieces(self, requests: list[Request]) -> list[tuple[Request, Piece]]:
        """What to compute in this step: a token of every row that is decoding, and chunks of prompts, oldest first."""
        pieces: list[tuple[Request, Piece]] = []
        budget = self._chunk
        for request in requests:
            try:
                for piece in request.pieces(self.engine, self.slots, budget, self._restart):
                    pieces.append((request, piece))
                    budget -= piece.cost
                    if len(pieces) == MOST_ROWS:
                        return pieces
            except self.out_of_memory as error:
                self._relieve(requests, error)
                return []
        return pieces

    def _compute(self, pieces: list[tuple[Request, Piece]], requests: list[Request]) -> bool:
        """Run the engine; False if it had to make room or was cancelled, and nothing was computed."""
        parts = [piece for _, piece in pieces]
        sources = [(piece.slot, piece.source) for piece in parts if piece.source is not None]
        wanted = [piece.wanted for piece in parts]
        logits = self._room_for(sum(wanted), requests)
        try:
            if sources:
                texts = [source for _, source in sources]
                self.engine.encode([slot for slot, _ in sources], [len(text) for text in texts], np.concatenate(texts))
            self.engine.forward(
                [piece.slot for piece in parts],
                [len(piece.tokens) for piece in parts],
                wanted,
                np.concatenate([piece.tokens for piece in parts]),
                logits,
            )
        except self.out_of_memory as error:
            self._relieve(requests, error)
            return False
        except self._engine_cancelled:
            return False
        except Exception as error:
            for request, _ in pieces:
                request.error = error
            return False
        greedy = any(request.takes_likeliest for request, _ in pieces)
        likeliest = self.engine.likeliest(logits) if greedy else []
        end = 0
        for request, piece in pieces:
            begin, end = end, end + piece.wanted
            own = likeliest[begin:end] if request.takes_likeliest else torch.from_numpy(logits[begin:end])
            request.feed(piece, own)
        return True

    def _room_for(self, rows: int, requests: list[Request]) -> NDArray[np.float32]:
        """Where logits [rows, V] go: new memory if any of these requests may keep them."""
        shape = rows, self.engine.vocab_size
        if any(request.keeps_logits for request in requests):
            return np.empty(shape, dtype=np.float32)
        if len(self._scores) < rows:
            self._scores = np.empty(shape, dtype=np.float32)
        return self._scores[:rows]

    def _relieve(self, requests: list[Request], error: Exception) -> None:
        """Keys and values need memory: forget ended sequences first, then let the youngest request start later."""
        if self.slots.make_room():
            return
        if len(requests) > 1:
            requests[-1].release(self.slots)
            self._parked.append(requests[-1])
            return
        requests[0].error = ContextError(
            f"keys and values of this sequence need more than the {self.engine.max_memory} bytes that max_memory "
            f"allows, at {self.engine.kv_bytes_per_token} bytes a token: use a shorter prompt or fewer new tokens, "
            "smaller keys and values (backend option kv=int8), or more max_memory"
        )
        requests[0].error.__cause__ = error
