"""`ChatWoqfx`: messages in, a message out."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list, patch_config
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field, SecretStr

from woqfx.errors import SettingsError
from woqfx.generating import Answer, Constraint, Prompt, Request, Settings
from woqfx.generating.forms import instructed, response_constraint
from woqfx.generating.stopping import StopFinder
from woqfx.generating.tools import ToolUse
from woqfx.langchain.language_model import STRICT, ConfiguredModel, answers_of, usage_of
from woqfx.langchain.llm import logprobs_of, run_cancellable
from woqfx.langchain.messages import template_messages
from woqfx.langchain.structured import structured


@dataclass(frozen=True)
class _Question:
    """Everything about one call."""

    prompt: Prompt
    settings: Settings
    constraint: Constraint | None
    tools: ToolUse | None

    @property
    def options(self) -> dict[str, Any]:
        """For the text generator."""
        return {"constraint": self.constraint, "special": self.tools is not None and self.tools.special}


class ChatWoqfx(ConfiguredModel, BaseChatModel):
    """A quantized model as a LangChain chat model, through its own chat template.

        chat = ChatWoqfx(model="out/", max_tokens=200)
        chat.invoke([("system", "Be brief."), ("human", "What is a quark?")])
        chat.bind_tools([multiply], tool_choice="any")
        chat.with_structured_output(Person)

    Parameters of a call (`temperature`, `max_tokens`, `seed`, ...) go before the object's; unknown ones are errors.
    """

    model_config = STRICT

    streaming: bool = False
    """Whether `invoke` streams too, so that callbacks see tokens."""
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template, such as `enable_thinking`."""
    max_retries: int | None = None
    """Without effect, since nothing fails by chance here; LangChain's standard parameters include it."""
    api_key: SecretStr | None = Field(default=None, exclude=True)
    """Without effect, like `max_retries`."""

    @property
    def _llm_type(self) -> str:
        return "woqfx-chat"

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools: functions, classes, LangChain's tools or OpenAI's dictionaries.

        `tool_choice` is "auto" (the default: the model decides), "none", "any" or "required", or a tool's name. Calls
        follow their tool's schema by construction, so `strict` changes nothing.
        """
        formatted = [convert_to_openai_tool(tool) for tool in tools]
        choice = _choice(tool_choice)
        names = [tool["function"]["name"] for tool in formatted]
        if choice not in ("auto", "none", "any", *names):
            raise SettingsError(f"tool_choice is {choice!r}, and the tools are {', '.join(names)}")
        return self.bind(tools=formatted, tool_choice=choice, parallel_tool_calls=parallel_tool_calls, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Any = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """The model with answers that follow `schema`: a Pydantic class, a TypedDict, or a JSON schema.

        With `method` "json_schema" or "function_calling", no token that the schema forbids can come; with "json_mode",
        the answer is any JSON object, and the prompt has to say which. `strict` changes nothing.
        """
        if kwargs:
            raise SettingsError(f"with_structured_output has no {', '.join(kwargs)}")
        return structured(self, schema, method=method, include_raw=include_raw)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """An answer for each of `inputs`; they run together."""
        if not inputs:
            return []
        configs = get_config_list(config, len(inputs))
        at_once = configs[0].get("max_concurrency") or len(inputs)
        configs = [patch_config(one, max_concurrency=at_once) for one in configs]
        with self.load().together(min(at_once, len(inputs))):
            return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def get_num_tokens_from_messages(
        self,
        messages: list[BaseMessage],
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
    ) -> int:
        """How many tokens the model gets for `messages` and `tools`."""
        given = {} if not tools else {"tools": [convert_to_openai_tool(tool) for tool in tools]}
        return len(self._question(messages, None, given).prompt.tokens)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        question, requests = self._request(messages, stop, kwargs)
        return self._result(question, answers_of(self.load(), requests)[0])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        question, requests = await asyncio.to_thread(self._request, messages, stop, kwargs)
        return self._result(question, (await run_cancellable(self, requests))[0])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        question = self._question(messages, stop, kwargs)
        shown = StopFinder([] if question.tools is None else [question.tools.dialect.marker])
        with self.load().stream(question.prompt, question.settings, **question.options) as stream:
            for piece in stream:
                if text := shown.feed(piece.text):
                    yield _told(AIMessageChunk(content=text), run_manager)
            if text := shown.finish():
                yield _told(AIMessageChunk(content=text), run_manager)
            yield _told(self._last(question, stream.answer), run_manager)

    def _question(self, messages: list[BaseMessage], stop: list[str] | None, given: dict[str, Any]) -> _Question:
        given = dict(given)
        tools, choice = given.pop("tools", None), _choice(given.pop("tool_choice", None))
        parallel, form = given.pop("parallel_tool_calls", False), given.pop("response_format", None)
        given.pop("stream", None)
        template = {**self.template_kwargs, **given.pop("template_kwargs", {})}
        settings = self._settings(stop, given)
        generator, asked = self.load(), template_messages(messages)
        if tools:
            if form is not None:
                raise SettingsError("tools and response_format exclude each other: an answer is a call or of a form")
            use = ToolUse(generator, tools, choice=choice, parallel=parallel)
            return _Question(use.prompt(asked, **template), settings, use.constraint, use)
        constraint = None if form is None else response_constraint(form)
        asked = asked if form is None else instructed(asked, form)
        return _Question(generator.chat_prompt(asked, **template), settings, constraint, None)

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, given: dict[str, Any]
    ) -> tuple[_Question, list[Request]]:
        question = self._question(messages, stop, given)
        return question, self.load().requests([question.prompt], question.settings, **question.options)

    def _result(self, question: _Question, answer: Answer) -> ChatResult:
        message = AIMessage(content=answer.text, usage_metadata=usage_of([answer]))
        if question.tools is not None:
            reply = question.tools.parse(answer.text)
            message.content = reply.text
            message.tool_calls = [
                tool_call(name=call.name, args=dict(call.arguments), id=_call_id()) for call in reply.calls
            ]
            message.invalid_tool_calls = [
                invalid_tool_call(name=None, args=text, id=_call_id(), error="no complete call")
                for text in reply.broken
            ]
        message.response_metadata = self._metadata(answer, calls=bool(message.tool_calls))
        return ChatResult(generations=[ChatGeneration(message=message, generation_info=message.response_metadata)])

    def _last(self, question: _Question, answer: Answer) -> AIMessageChunk:
        """The chunk that ends a stream: calls, and what there is to tell of the whole."""
        reply = None if question.tools is None else question.tools.parse(answer.text)
        written = [] if reply is None else [(call.name, json.dumps(call.arguments)) for call in reply.calls]
        spoilt = [] if reply is None else [(None, text) for text in reply.broken]
        chunks = [
            tool_call_chunk(name=name, args=arguments, id=_call_id(), index=at)
            for at, (name, arguments) in enumerate([*written, *spoilt])
        ]
        return AIMessageChunk(
            content="",
            tool_call_chunks=chunks,
            usage_metadata=usage_of([answer]),
            response_metadata=self._metadata(answer, calls=bool(written)),
            chunk_position="last",
        )

    def _metadata(self, answer: Answer, *, calls: bool) -> dict[str, Any]:
        metadata = {
            "model_name": self.model,
            "model_provider": "woqfx",
            "finish_reason": "tool_calls" if calls else answer.finish,
        }
        return {**metadata, **logprobs_of(self, answer.scores)}


def _told(message: AIMessageChunk, run_manager: CallbackManagerForLLMRun | None) -> ChatGenerationChunk:
    """A chunk; LangChain gives a run manager where callbacks are ours to call."""
    chunk = ChatGenerationChunk(message=message)
    if run_manager is not None:
        run_manager.on_llm_new_token(str(message.content), chunk=chunk)
    return chunk


def _choice(given: str | bool | Mapping[str, Any] | None) -> str:
    """A `tool_choice` in any of the forms that LangChain's users know."""
    if isinstance(given, Mapping):
        function = given.get("function", given)
        return str(function.get("name"))
    named = {None: "auto", True: "any", False: "none", "required": "any"}
    return named.get(given, str(given))


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
