"""An answer as it comes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from woqfx.generating.request import Answer, Piece, Request


class Stream:
    """The pieces of one answer, in order; afterwards, `answer` is the whole.

    The generation runs in a thread that begins with the first piece asked for, and does not wait for its reader: who
    reads slowly, or asks the same model something else in between, holds nobody up. Its errors are raised where the
    pieces are read. Leaving the `with` block, or `close`, cancels what is left.
    """

    def __init__(
        self, make: Callable[[Callable[[Piece], None]], Request], run: Callable[[Sequence[Request]], None]
    ) -> None:
        self._pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._request = make(self._pieces.put)
        self._run = run
        self._thread: threading.Thread | None = None
        self._read = self._reading()

    def __iter__(self) -> Iterator[Piece]:
        return self._read

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def answer(self) -> Answer:
        """The whole answer, once it has ended. Raises the error that it ended with."""
        return self._request.answer

    def close(self) -> None:
        """Cancel what is left, and wait until the model is free of it."""
        self._request.cancel()
        if self._thread is not None:
            self._thread.join()

    def _reading(self) -> Iterator[Piece]:
        self._thread = threading.Thread(target=self._work, name="woqfx-stream")
        self._thread.start()
        try:
            while (piece := self._pieces.get()) is not None:
                yield piece
        finally:
            self.close()
        _ = self.answer  # raises what went wrong

    def _work(self) -> None:
        try:
            self._run([self._request])
        except BaseException as error:
            self._request.fail(error)
        finally:
            self._pieces.put(None)
