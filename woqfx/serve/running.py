"""From the event loop to the threads that generate, and back: no more at a time than allowed, and none for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from woqfx.generating import Answer, Piece, Request, TextGenerator
from woqfx.serve.failures import RefusedError

T = TypeVar("T")

_LOOK_SECONDS = 0.25  # how often it is looked whether the client is still there


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Runner:
    """Runs requests of many clients on one model. `most` may run or wait at a time."""

    def __init__(self, generator: TextGenerator, most: int) -> None:
        self.generator = generator
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="woqfx-serve")
        self._most = most
        self._here = 0
        self._running: set[Request] = set()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Within, a client's request has a place. Raises `RefusedError` (429) if there is none left."""
        if self._here >= self._most:
            raise RefusedError(429, f"{self._here} requests are being worked on, and no more are taken: try again")
        self._here += 1
        try:
            yield
        finally:
            self._here -= 1

    async def elsewhere(self, work: Callable[..., T], *arguments: object) -> T:
        """`work` in a thread: tokenizing and scoring would hold up everybody."""
        return await asyncio.to_thread(work, *arguments)

    async def answers(self, http: HttpRequest, requests: Sequence[Request]) -> list[Answer]:
        """All answers. When the client goes away, the requests are cancelled, and `ClientGoneError` is raised."""
        running = self._start(requests)
        try:
            while not (await asyncio.wait([running], timeout=_LOOK_SECONDS))[0]:
                if await http.is_disconnected():
                    raise ClientGoneError
            running.result()
        finally:
            await self._stop(requests, running)
        return [request.answer for request in requests]

    async def pieces(
        self, make: Callable[[list[Callable[[Piece], None]]], Sequence[Request]], count: int
    ) -> AsyncIterator[tuple[int, Piece | Answer]]:
        """What `count` requests say, with the number of the one that says it: its pieces, at last its answer.

        `make` gets a listener for each. Leaving the iteration cancels what is left.
        """
        loop = asyncio.get_running_loop()
        said: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue()

        def listener(number: int) -> Callable[[Piece], None]:
            def tell(piece: Piece) -> None:
                loop.call_soon_threadsafe(said.put_nowait, (number, piece))

            return tell

        requests = await self.elsewhere(make, [listener(number) for number in range(count)])
        running = self._start(requests)
        running.add_done_callback(lambda _: said.put_nowait(None))
        try:
            while (one := await said.get()) is not None:
                yield one
            running.result()
            for number, request in enumerate(requests):
                yield number, request.answer
        finally:
            await self._stop(requests, running)

    def close(self) -> None:
        """Cancel everything: the server ends."""
        for request in [*self._running]:
            request.cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _start(self, requests: Sequence[Request]) -> asyncio.Future[None]:
        self._running.update(requests)
        return asyncio.get_running_loop().run_in_executor(self._threads, self.generator.run, requests)

    async def _stop(self, requests: Sequence[Request], running: asyncio.Future[None]) -> None:
        if not running.done():
            for request in requests:
                request.cancel()
            await asyncio.wait([running])
        self._running.difference_update(requests)
