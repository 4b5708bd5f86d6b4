"""One prompt on its way to an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from woqfx.errors import GenerationError
from woqfx.generating.detokenizing import Detokenizer
from woqfx.generating.sampling import Choice, Sampler
from woqfx.generating.settings import Settings
from woqfx.generating.stopping import StopFinder

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Prompt:
    """Tokens to go on from; `context` are those whose text the answer is to go on with, as one text."""

    tokens: tuple[int, ...]
    context: tuple[int, ...] = ()


@dataclass(frozen=True)
class TokenScore:
    """A token of an answer, its natural log-probability, and the likeliest tokens at its place, likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """What a step adds to an answer: text (what may yet become a stop text is held back), and its tokens' scores."""

    text: str
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The text that a model went on with: without the prompt, without the stop text.

    `finish` is "stop" for an end of sequence or a stop text, which `stop_text` then names, "length", or "cancelled".
    `new_tokens` counts all tokens that were generated, an end of sequence and those of the stop text too.
    """

    text: str
    finish: Finish
    stop_text: str | None
    prompt_tokens: int
    new_tokens: int
    scores: tuple[TokenScore, ...] = ()


class Request:
    """One prompt, its settings, and what has come of it; `done` is set when it has an answer or an error.

    The engine calls `take` for each token. `cancel` may be called from any thread: the answer is then what there is.
    """

    def __init__(
        self,
        prompt: Prompt,
        settings: Settings,
        sampler: Sampler,
        *,
        limit: int,
        ends: frozenset[int],
        detokenizer: Detokenizer,
        listener: Callable[[Piece], None] | None = None,
    ) -> None:
        self.prompt = prompt
        self.settings = settings
        self.sampler = sampler
        #: How many tokens may come.
        self.limit = limit
        self.tokens: list[int] = []
        self.cancelled = False
        self.done = threading.Event()
        self.error: BaseException | None = None
        #: Tokens that end the answer.
        self.ends = ends
        self._detokenizer = detokenizer
        self._stops = StopFinder(settings.stop)
        self._listener = listener
        self._texts: list[str] = []
        self._scores: list[TokenScore] = []
        self._finish: Finish | None = None
        self._deadline = None if settings.timeout is None else time.monotonic() + settings.timeout

    def cancel(self) -> None:
        """Have it end at the next token."""
        self.cancelled = True

    def take(self, choice: Choice) -> None:
        """The next token. Whatever goes wrong here, such as an error of the listener's, is this request's alone."""
        try:
            self._take(choice)
        except Exception as error:
            self.fail(error)

    def check(self) -> None:
        """End it if it was cancelled, or its time is up."""
        if self.cancelled:
            self.end("cancelled")
        elif self._deadline is not None and time.monotonic() > self._deadline:
            self.fail(GenerationError(f"timeout: {len(self.tokens)} tokens came in {self.settings.timeout} seconds"))

    def fail(self, error: BaseException) -> None:
        """End it with an error, which `answer` raises."""
        if not self.done.is_set():
            self.error = error
            self.done.set()

    def end(self, finish: Finish) -> None:
        """End it with what there is."""
        if not self.done.is_set():
            self._end(finish)

    @property
    def answer(self) -> Answer:
        """What came of it. Raises the error that it ended with."""
        if self.error is not None:
            raise self.error
        if self._finish is None:
            raise GenerationError("the generation has not ended yet: wait for request.done")
        return Answer(
            "".join(self._texts),
            self._finish,
            self._stops.found,
            len(self.prompt.tokens),
            len(self.tokens),
            tuple(self._scores),
        )

    def _take(self, choice: Choice) -> None:
        self.tokens.append(choice.token)
        scores: tuple[TokenScore, ...] = ()
        if choice.logprob is not None:
            scores = (TokenScore(choice.token, choice.logprob, choice.top),)
        if choice.token in self.ends:
            self._tell("", scores)
            self._end("stop")
            return
        self._tell(self._stops.feed(self._detokenizer.feed(choice.token)), scores)
        if self._stops.found is not None:
            self._end("stop")
        elif len(self.tokens) >= self.limit:
            self._end("length")
        else:
            self.check()

    def _end(self, finish: Finish) -> None:
        if self._stops.found is None:
            last = self._stops.feed(self._detokenizer.finish())
            stopped = self._stops.found is not None
            self._tell(last + ("" if stopped else self._stops.finish()), ())
            finish = "stop" if stopped else finish
        self._finish = finish
        self.done.set()

    def _tell(self, text: str, scores: tuple[TokenScore, ...]) -> None:
        self._texts.append(text)
        self._scores += scores
        if self._listener is not None and (text or scores):
            self._listener(Piece(text, scores))
