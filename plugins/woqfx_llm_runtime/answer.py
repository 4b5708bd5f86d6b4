"""A request that was handed in: its tokens come one by one, and it can be given up."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from woqfx_llm_runtime.requests.request import FinishReason, Request
    from woqfx_llm_runtime.requests.scheduler import Scheduler


class Answer:
    """The tokens of one sequence, as they come: an iterator of ints, from any one thread.

    Nothing is computed for it while nobody waits: neither for it nor for another request of the same model. Dropping it
    gives it up.
    """

    def __init__(self, scheduler: Scheduler, request: Request) -> None:
        self._scheduler, self._request = scheduler, request
        self._given = request.prompt_columns
        scheduler.add(request)
        weakref.finalize(self, request.abandon).atexit = False

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        request = self._request
        if request.columns <= self._given:
            self._scheduler.wait(request, self._given)
            if request.columns <= self._given:
                raise StopIteration
        self._given += 1
        return int(request.tokens[0, self._given - 1])

    @property
    def tokens(self) -> list[int]:
        """The new tokens so far."""
        found: list[int] = self._request.tokens[0, self._request.prompt_columns :].tolist()
        return found

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why no more will come: "stop" for an end token, a stop string or another criterion, "length", "cancelled"."""
        return self._request.reason if self._request.finished else None

    def result(self) -> list[int]:
        """Wait for the end; all new tokens."""
        while not self._request.finished:
            self._scheduler.wait(self._request, self._request.columns)
        if self._request.error is not None:
            raise self._request.error
        return self.tokens

    def cancel(self) -> None:
        """Give it up, from any thread. What has come stays; whoever iterates sees the end."""
        if not self._request.finished:
            self._scheduler.cancel(self._request)
