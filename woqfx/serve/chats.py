"""POST /v1/chat/completions."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from transformers import PreTrainedTokenizerBase

from woqfx.generating import Answer, Piece, Request, Settings, TokenScore
from woqfx.generating.forms import instructed, response_constraint
from woqfx.generating.stopping import StopFinder
from woqfx.generating.tools import ToolUse
from woqfx.serve import formats
from woqfx.serve.admission import Admission
from woqfx.serve.failures import RefusedError
from woqfx.serve.requests import ChatRequest
from woqfx.serve.running import Runner

_CHUNK = "chat.completion.chunk"

#: What renders a chat takes as its own and not as a variable of the template; another template among them.
_NO_VARIABLES = frozenset(
    {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "answer", "messages"} - {"documents"}
)


class Chat:
    """One request for an answer in a chat, on its way. Raises `SettingsError` or `RefusedError`."""

    def __init__(self, asked: ChatRequest, runner: Runner, admission: Admission) -> None:
        self._asked = asked
        self._runner = runner
        self._generator = runner.generator
        self._envelope = formats.Envelope("chat.completion", "chatcmpl", admission.name)
        self._tools = None
        self._constraint = None
        messages, template = asked.conversation, _variables(asked.chat_template_kwargs)
        if asked.tools:
            self._tools = ToolUse(self._generator, asked.tools, choice=asked.choice, parallel=asked.parallel_tool_calls)
            self._constraint = self._tools.constraint
            self._prompt = self._tools.prompt(messages, **template)
        else:
            if asked.response_format is not None:
                self._constraint = response_constraint(asked.response_format)
                messages = instructed(messages, asked.response_format)
            self._prompt = self._generator.chat_prompt(messages, **template)
        admission.admit([self._prompt], asked.n, asked.most_tokens)
        self._most = asked.most_tokens or admission.limits.new_tokens or self._generator.context_size or 1024

    async def whole(self, http: HttpRequest) -> dict[str, Any]:
        """The answer in one piece."""
        requests = await self._runner.elsewhere(self._requests, None)
        answers = await self._runner.answers(http, requests)
        return self._envelope.whole(
            [self._choice(at, answer) for at, answer in enumerate(answers)], self._usage(answers)
        )

    async def stream(self) -> AsyncGenerator[str]:
        """The answer as it comes, in server-sent events."""
        count = self._asked.n
        held = [StopFinder([] if self._tools is None else [self._tools.dialect.marker]) for _ in range(count)]
        answers = []
        begun = False
        async for at, said in self._runner.pieces(self._requests, count):
            if not begun:
                for each in range(count):
                    yield self._event(each, {"role": "assistant", "content": ""})
                begun = True
            if isinstance(said, Piece):
                text = held[at].feed(said.text)
                if text or said.scores:
                    yield self._event(at, {"content": text}, scores=said.scores)
                continue
            answers.append(said)
            if text := held[at].finish():
                yield self._event(at, {"content": text})
            calls = [] if self._tools is None else formats.tool_calls(self._tools.parse(said.text), streamed=True)
            if calls:
                yield self._event(at, {"tool_calls": calls})
            yield self._event(at, {}, finish="tool_calls" if calls else said.finish)
        if self._asked.tells_usage:
            yield self._envelope.event([], chunk=_CHUNK, usage=self._usage(answers))
        yield formats.DONE

    def _requests(self, listeners: Sequence[Callable[[Piece], None]] | None) -> list[Request]:
        top = (self._asked.top_logprobs or 0) if self._asked.logprobs else None
        given = self._asked.sampling | {"max_new_tokens": self._most, "logprobs": top}
        requests = []
        for at in range(self._asked.n):
            seed = given.get("seed")
            settings = Settings.read(given | ({} if seed is None else {"seed": seed + at}))
            requests.append(
                self._generator.request(
                    self._prompt,
                    settings,
                    constraint=self._constraint,
                    special=self._tools is not None and self._tools.special,
                    listener=None if listeners is None else listeners[at],
                )
            )
        return requests

    def _choice(self, at: int, answer: Answer) -> dict[str, Any]:
        reply = None if self._tools is None else self._tools.parse(answer.text)
        text = answer.text if reply is None else reply.text + "".join(reply.broken)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        calls = [] if reply is None else formats.tool_calls(reply)
        if calls:
            message |= {"tool_calls": calls, "content": text or None}
        logprobs = formats.chat_logprobs(self._generator, answer.scores) if self._asked.logprobs else None
        finish = "tool_calls" if calls else answer.finish
        return {"index": at, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def _event(
        self, at: int, delta: dict[str, Any], *, scores: Sequence[TokenScore] = (), finish: str | None = None
    ) -> str:
        logprobs = formats.chat_logprobs(self._generator, scores) if scores and self._asked.logprobs else None
        choice = {"index": at, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._envelope.event([choice], chunk=_CHUNK)

    def _usage(self, answers: Sequence[Answer]) -> dict[str, int]:
        return formats.usage(len(self._prompt.tokens), answers)


def _variables(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a client gives the chat template. A template of a client's own could run as long as it likes."""
    if strangers := sorted(_NO_VARIABLES.intersection(given)):
        raise RefusedError(
            400,
            f"chat_template_kwargs: {strangers[0]!r} is not a variable of the model's template: leave it out",
            param="chat_template_kwargs",
        )
    return given
