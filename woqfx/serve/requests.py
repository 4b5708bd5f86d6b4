"""What clients send, checked: a parameter is honoured, refused, or listed here as one without effect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from woqfx.serve.failures import ParameterError

#: Parameters that are bookkeeping of OpenAI's own service, accepted because clients send them.
NO_EFFECT = ("metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user")

#: Parameters that are refused unless they have the value that changes nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "suffix": ("",),
}

Tokens: TypeAlias = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Strict):
    """What a stream tells beside its pieces."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _Common(_Strict):
    """What completions and chats have in common. What is left out is as the model's own generation config has it."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    n: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0)] | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, allowed in NEUTRAL.items():
            if (value := values.get(name)) is not None and value not in allowed:
                raise ParameterError(name, f"{value!r} is nothing that this server does: leave it out")
        return {name: value for name, value in values.items() if name not in NO_EFFECT and name not in NEUTRAL}

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings of `woqfx.generating.Settings` that were given."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        names = (
            *("temperature", "top_p", "top_k", "min_p", "seed"),
            *("repetition_penalty", "frequency_penalty", "presence_penalty"),
        )
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None} | {"stop": stop}

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Common):
    """The body of POST /v1/completions."""

    prompt: str | Tokens | list[str] | list[Tokens]
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, as texts or tokens."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, prompt: Any) -> Any:
        if not prompt:
            raise ValueError("it is empty")
        return prompt

    @model_validator(mode="after")
    def _possible(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ParameterError("max_tokens", "it is 0, and without echo there is nothing to answer")
        if self.stream and self.echo and self.logprobs is not None:
            raise ParameterError(
                "stream", "the prompt's own logprobs come all at once: leave out stream, echo or logprobs"
            )
        return self


class FunctionCall(_Strict):
    """A tool's name, and its arguments as JSON."""

    name: str
    arguments: str


class Call(_Strict):
    """A call that an earlier answer made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Text(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One message of a chat. `annotations`, `audio` and `refusal`, which clients hand back, say nothing to a model."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Text] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    refusal: str | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it. Raises `ValueError` for arguments that are no JSON."""
        content = "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        message |= {key: value for key in ("name", "tool_call_id") if (value := getattr(self, key)) is not None}
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": _function(call.function)} for call in self.tool_calls
            ]
        elif content is None:
            message["content"] = ""
        return message


class ChatRequest(_Common):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @property
    def most_tokens(self) -> int | None:
        """How many tokens may come, by its new name or its old one."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def conversation(self) -> Sequence[dict[str, Any]]:
        """The messages as chat templates take them."""
        return [message.for_template() for message in self.messages]

    @property
    def choice(self) -> str:
        """Who decides about calls: "auto", "none", "any", or a tool's name."""
        if isinstance(self.tool_choice, dict):
            function = self.tool_choice.get("function")
            return str(function.get("name")) if isinstance(function, dict) else str(self.tool_choice)
        return {None: "auto", "required": "any"}.get(self.tool_choice, str(self.tool_choice))

    @model_validator(mode="after")
    def _possible(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ParameterError("top_logprobs", "it needs logprobs: true")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ParameterError("tool_choice", "it needs tools")
        if self.tools and self.response_format not in (None, {"type": "text"}):
            raise ParameterError(
                "tools", "tools and response_format exclude each other: an answer is a call or of a form"
            )
        try:
            _ = self.conversation
        except ValueError as error:  # of a call's arguments
            raise ParameterError("messages", str(error)) from error
        return self


def _function(call: FunctionCall) -> dict[str, Any]:
    try:
        return {"name": call.name, "arguments": json.loads(call.arguments)}
    except json.JSONDecodeError as error:
        raise ValueError(f"the arguments of the call of {call.name} are no JSON: {error}") from error
