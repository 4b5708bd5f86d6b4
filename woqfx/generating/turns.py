"""Requests of many threads share one model: whoever comes while it is busy runs together in the next turn."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from woqfx.errors import GenerationError
from woqfx.generating.batch import hand_in, run_batch
from woqfx.generating.request import Request
from woqfx.generating.sampling import Choice

#: How long a turn that knows of companions waits for them to come.
_GATHERING_SECONDS = 0.02


class Turns:
    """Runs requests through a model's `generate`, up to `batch_size` at a time.

    There is no thread of its own: a thread that finds the model free runs the requests of all who wait, and the others
    wait until theirs are done.
    """

    def __init__(self, model: Any, batch_size: int, padding: int) -> None:
        self._model = model
        self._batch_size = batch_size
        self._padding = padding
        self._changed = threading.Condition()
        self._waiting: list[Request] = []
        self._busy = False
        self._expected = 0

    def run(self, requests: Sequence[Request]) -> None:
        """Return when all `requests` are done."""
        with self._changed:
            self._waiting += requests
            self._changed.notify_all()
        while True:
            with self._changed:
                while self._busy and not _all_done(requests):
                    self._changed.wait()
                if _all_done(requests):
                    return
                self._busy = True
            self._turn(requests)

    @contextmanager
    def together(self, count: int) -> Iterator[None]:
        """Within, about `count` requests come from different threads: a turn waits a moment for them."""
        with self._changed:
            self._expected += count
        try:
            yield
        finally:
            with self._changed:
                self._expected -= count

    def _turn(self, requests: Sequence[Request]) -> None:
        batch: list[Request] = []
        try:
            batch = self._gather(requests)
            if batch:
                run_batch(self._model, batch, self._padding, self._tell_others)
        except Exception as error:
            for request in batch:
                request.fail(error)
        except BaseException as error:
            for request in batch:
                request.fail(
                    error if request in requests else GenerationError("the thread that ran it was interrupted")
                )
            raise
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _tell_others(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _gather(self, requests: Sequence[Request]) -> list[Request]:
        """Take one batch from those who wait: the first of `requests` that is not done, and those most like it."""
        with self._changed:
            end = time.monotonic() + _GATHERING_SECONDS
            while len(self._waiting) < min(self._expected, self._batch_size) and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            for request in self._waiting:
                request.check()
            self._waiting = [request for request in self._waiting if not request.done.is_set()]
            first = next((request for request in self._waiting if request in requests), None)
            if first is None:
                return []
            like = sorted(
                (r for r in self._waiting if _shares(first, r)),
                key=lambda r: abs(len(r.prompt.tokens) - len(first.prompt.tokens)),
            )
            batch = like[: self._batch_size]
            self._waiting = [request for request in self._waiting if request not in batch]
        return batch


class Shared:
    """Runs requests on a model that shares its steps among threads by itself: each thread runs its own.

    The model chooses tokens too (`hand_in`), unless a request wants more of them than it can do.
    """

    def __init__(self, model: Any, batch_size: int, padding: int) -> None:
        self._model = model
        self._batch_size = batch_size
        self._padding = padding

    def run(self, requests: Sequence[Request]) -> None:
        """Return when all `requests` are done."""
        waiting = self._hand_in(requests)
        while waiting:
            batch = [request for request in waiting if _shares(waiting[0], request)][: self._batch_size]
            waiting = [request for request in waiting if request not in batch]
            try:
                run_batch(self._model, batch, self._padding)
            except Exception as error:
                for request in batch:
                    request.fail(error)

    def _hand_in(self, requests: Sequence[Request]) -> list[Request]:
        """Run those whose tokens the model can choose; the others."""
        others: list[Request] = []
        waiting, running = deque(requests), dict[Request, Any]()
        try:
            while waiting or running:
                while waiting and len(running) < self._batch_size:
                    request = waiting.popleft()
                    request.check()
                    try:
                        handed = None if request.done.is_set() else hand_in(self._model, request, self._padding)
                    except Exception as error:
                        request.fail(error)
                        continue
                    if handed is not None:
                        running[request] = handed
                    elif not request.done.is_set():
                        others.append(request)
                for request, handed in list(running.items()):
                    _take_next(request, handed)
                    if request.done.is_set():
                        handed.cancel()
                        del running[request]
        finally:
            for handed in running.values():
                handed.cancel()
        return others

    def together(self, count: int) -> AbstractContextManager[None]:
        """Nobody has to wait for others."""
        return nullcontext()


def _take_next(request: Request, tokens: Iterator[int]) -> None:
    try:
        token = next(tokens, None)
    except Exception as error:
        request.fail(error)
        return
    if token is None:
        request.end("length")  # a limit of transformers', such as max_time
    else:
        request.take(Choice(token))


def _all_done(requests: Sequence[Request]) -> bool:
    return all(request.done.is_set() for request in requests)


def _shares(first: Request, other: Request) -> bool:
    """Whether both can be rows of one batch; beams cannot, since transformers reorders their rows."""
    return other is first or (other.settings.more == first.settings.more and not first.settings.beams)
