"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest

from woqfx.errors import SettingsError
from woqfx.generating import Answer, Piece, Prompt, Request, Settings, TokenScore
from woqfx.generating.scoring import score_prompt
from woqfx.serve import formats
from woqfx.serve.admission import Admission
from woqfx.serve.requests import CompletionRequest
from woqfx.serve.running import Runner


class Completion:
    """One request for completions, on its way. Raises `SettingsError` or `RefusedError`."""

    def __init__(self, asked: CompletionRequest, runner: Runner, admission: Admission) -> None:
        self._asked = asked
        self._runner = runner
        self._generator = runner.generator
        self._envelope = formats.Envelope("text_completion", "cmpl", admission.name)
        self._prompts = [self._prompt(given) for given in asked.prompts]
        admission.admit(self._prompts, asked.n, asked.max_tokens)

    async def whole(self, http: HttpRequest) -> dict[str, Any]:
        """The answer in one piece."""
        answers: list[Answer | None] = [None] * (len(self._prompts) * self._asked.n)
        if self._asked.max_tokens:
            requests = await self._runner.elsewhere(self._requests, None)
            answers = [*await self._runner.answers(http, requests)]
        scores: list[tuple[TokenScore, ...]] = [()] * len(self._prompts)
        if self._asked.echo and self._asked.logprobs is not None:
            top = self._asked.logprobs
            scores = [await self._runner.elsewhere(score_prompt, self._generator, p, top) for p in self._prompts]
        choices = [self._choice(at, answer, scores[at // self._asked.n]) for at, answer in enumerate(answers)]
        return self._envelope.whole(choices, self._usage([answer for answer in answers if answer is not None]))

    async def stream(self) -> AsyncGenerator[str]:
        """The answer as it comes, in server-sent events."""
        count = len(self._prompts) * self._asked.n
        answers: list[Answer] = []
        echoed = [self._event(at, self._shown(at), None) for at in range(count)] if self._asked.echo else []
        if self._asked.max_tokens:
            async for at, said in self._runner.pieces(self._requests, count):
                while echoed:
                    yield echoed.pop(0)
                if isinstance(said, Answer):
                    answers.append(said)
                    yield self._event(at, "", None, said.finish)
                elif said.text or said.scores:
                    yield self._event(at, said.text, said.scores)
        for event in echoed:
            yield event
        if self._asked.tells_usage:
            yield self._envelope.event([], chunk="text_completion", usage=self._usage(answers))
        yield formats.DONE

    def _prompt(self, given: str | list[int]) -> Prompt:
        if isinstance(given, str):
            return self._generator.text_prompt(given)
        size = self._generator.model.config.get_text_config().vocab_size
        if max(given) >= size:
            raise SettingsError(f"the prompt holds token {max(given)}, and the model knows {size} tokens")
        return Prompt(tuple(given), tuple(given))

    def _requests(self, listeners: Sequence[Callable[[Piece], None]] | None) -> list[Request]:
        given = self._asked.sampling | {"max_new_tokens": self._asked.max_tokens, "logprobs": self._asked.logprobs}
        requests = []
        for at in range(len(self._prompts) * self._asked.n):
            seed = given.get("seed")
            own = {} if seed is None else {"seed": seed + at % self._asked.n}
            listener = None if listeners is None else listeners[at]
            prompt = self._prompts[at // self._asked.n]
            requests.append(self._generator.request(prompt, Settings.read(given | own), listener=listener))
        return requests

    def _shown(self, at: int) -> str:
        """The prompt of a choice, as it was sent."""
        given = self._asked.prompts[at // self._asked.n]
        return given if isinstance(given, str) else str(self._generator.tokenizer.decode(given))

    def _choice(self, at: int, answer: Answer | None, of_prompt: Sequence[TokenScore]) -> dict[str, Any]:
        shown = self._shown(at) if self._asked.echo else ""
        logprobs = None
        if self._asked.logprobs is not None:
            scores = [*of_prompt, *(() if answer is None else answer.scores)]
            first = self._prompts[at // self._asked.n].tokens[0] if self._asked.echo else None
            logprobs = formats.completion_logprobs(self._generator, scores, first=first)
        text = shown + ("" if answer is None else answer.text)
        finish = "length" if answer is None else answer.finish
        return {"index": at, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _event(self, at: int, text: str, scores: Sequence[TokenScore] | None, finish: str | None = None) -> str:
        logprobs = None
        if scores and self._asked.logprobs is not None:
            logprobs = formats.completion_logprobs(self._generator, scores)
        choice = {"index": at, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return self._envelope.event([choice], chunk="text_completion")

    def _usage(self, answers: Sequence[Answer]) -> dict[str, int]:
        return formats.usage(sum(len(prompt.tokens) for prompt in self._prompts), answers)
