"""Tools that a model may call: telling it of them, holding it to their schemas, reading its calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from woqfx.errors import SettingsError
from woqfx.generating.dialect import Dialect, Message, find_dialect
from woqfx.generating.generator import TextGenerator
from woqfx.generating.grammar import Constraint, written_schema
from woqfx.generating.request import Prompt

#: How a caller says who decides: "auto" the model, "none" no call, "any" a call of any tool, or the name of one.
Choice = str


@dataclass(frozen=True)
class ToolCall:
    """A tool's name, and its arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class ToolReply:
    """An answer taken apart: its text, its calls, and what was begun like a call and is none (cut off, no JSON)."""

    text: str
    calls: tuple[ToolCall, ...]
    broken: tuple[str, ...]


class ToolUse:
    """Tools for one model's answers.

    `tools` are in OpenAI's form: {"type": "function", "function": {"name", "description", "parameters"}}. A call
    follows its tool's schema by construction; properties that a schema does not name are not allowed unless it says
    so. With `parallel`, an answer may hold several calls.

    Raises `SettingsError` for tools that are malformed, and a `choice` that is none of them.
    """

    def __init__(
        self,
        generator: TextGenerator,
        tools: Sequence[Mapping[str, Any]],
        *,
        choice: Choice = "auto",
        parallel: bool = False,
    ) -> None:
        self._generator = generator
        self._tools = [_checked(tool) for tool in tools]
        self._functions = {tool["function"]["name"]: tool["function"] for tool in self._tools}
        self._choice = choice
        self._parallel = parallel
        if not tools or choice not in ("auto", "none", "any", *self._functions):
            raise SettingsError(f"tool_choice is {choice!r}, and the tools are: {', '.join(self._functions) or 'none'}")

    @cached_property
    def dialect(self) -> Dialect:
        """How the model writes calls."""
        return find_dialect(self._generator.render, self._generator.tokenizer.eos_token or "")

    @property
    def special(self) -> bool:
        """Whether calls are written with special tokens, which are to be decoded then."""
        return any(token in self.dialect.marker for token in self._generator.tokenizer.all_special_tokens)

    def prompt(self, messages: Sequence[Message], /, **template: Any) -> Prompt:
        """The messages, with what the model has to know about the tools."""
        if self._choice == "none":
            return self._generator.chat_prompt(messages, **template)
        if self.dialect.native:
            return self._generator.chat_prompt(messages, tools=self._tools, **template)
        return self._generator.chat_prompt([self._instructions(messages), *_plain(messages, self.dialect)], **template)

    @cached_property
    def constraint(self) -> Constraint | None:
        """What an answer must look like; None if no tool may be called."""
        if self._choice == "none":
            return None
        named = [name for name in self._functions if self._choice in ("auto", "any", name)]
        dialect = self.dialect
        body = " | ".join(f"{json.dumps(name + dialect.between)} args_{at}" for at, name in enumerate(named))
        rest = self._literal(dialect.before[len(dialect.marker) :])
        rules = [f"call: {rest} ({body}) {self._literal(dialect.after)}"]
        rules += [
            f"args_{at}: %json {written_schema(self._functions[name]['parameters'])}" for at, name in enumerate(named)
        ]
        marker = self._literal(dialect.marker)
        if self._choice != "auto":
            again = f' ("\\n" {marker} call)*' if self._parallel else ""
            return Constraint.lark("\n".join([f"start: {marker} call{again}", *rules]))
        lazy = "" if self.special else "[lazy]"
        start = "start: (upto call)* tail" if self._parallel else "start: upto call | tail"
        free = [f"upto{lazy}: TEXT {marker}", "tail: TEXT", r"TEXT: /(.|\n)*/"]
        return Constraint.lark("\n".join([start, *free, *rules]))

    def parse(self, text: str) -> ToolReply:
        """Take an answer apart."""
        calls, broken = [], []
        said, *rest = text.split(self.dialect.marker) if self._choice != "none" else [text]
        for part in rest:
            call = self._read(part)
            if call is None:
                broken.append(self.dialect.marker + part)
            else:
                calls.append(call)
        return ToolReply(said.rstrip() if rest else said, tuple(calls), tuple(broken))

    def _read(self, part: str) -> ToolCall | None:
        """The call that follows a marker; None if it is none."""
        rest = part.removeprefix(self.dialect.before[len(self.dialect.marker) :])
        for name in sorted(self._functions, key=len, reverse=True):
            if rest.startswith(name + self.dialect.between):
                try:
                    arguments, _ = json.JSONDecoder().raw_decode(rest, len(name + self.dialect.between))
                except json.JSONDecodeError:
                    return None
                return ToolCall(name, arguments) if isinstance(arguments, dict) else None
        return None

    def _literal(self, text: str) -> str:
        """`text` in Lark's notation, special tokens by their number."""
        special = {
            t: self._generator.tokenizer.convert_tokens_to_ids(t) for t in self._generator.tokenizer.all_special_tokens
        }
        parts = (
            re.split(f"({'|'.join(map(re.escape, sorted(special, key=len, reverse=True)))})", text)
            if special
            else [text]
        )
        return " ".join(f"<[{special[part]}]>" if part in special else json.dumps(part) for part in parts if part)

    def _instructions(self, messages: Sequence[Message]) -> Message:
        """A system message that tells of the tools, for templates that do not."""
        own = [str(message["content"]) for message in messages[:1] if message["role"] == "system"]
        listed = "\n".join(json.dumps(function, ensure_ascii=False) for function in self._functions.values())
        shown = self.dialect.write("NAME", {"PARAMETER": "VALUE"})
        told = (
            f"These functions are there for you to call, each with a JSON schema of its parameters:\n{listed}\n\n"
            f"To call a function, answer with its name and its arguments, and nothing else:\n{shown}\n\n"
            "What it returns comes back between <tool_response> and </tool_response>."
        )
        return {"role": "system", "content": "\n\n".join([*own, told])}


def _plain(messages: Sequence[Message], dialect: Dialect) -> list[Message]:
    """The messages but for a leading system message, with calls and their results as text."""
    return [_as_text(message, dialect) for at, message in enumerate(messages) if at or message["role"] != "system"]


def _as_text(message: Message, dialect: Dialect) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    if not calls:
        return message
    written = [dialect.write(call["name"], _arguments(call["arguments"])) for call in calls]
    return {"role": message["role"], "content": "\n".join([*filter(None, [message.get("content")]), *written])}


def _arguments(arguments: Any) -> Mapping[str, Any]:
    read = json.loads(arguments) if isinstance(arguments, str) else arguments
    return read if isinstance(read, dict) else {}


def _checked(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if tool.get("type") != "function" or not isinstance(name, str) or not re.fullmatch(r"[\w.:-]{1,128}", name):
        raise SettingsError(f"a tool must be {{'type': 'function', 'function': {{'name': ..., ...}}}}, not {tool!r}")
    assert isinstance(function, Mapping)
    parameters = function.get("parameters")
    if not isinstance(parameters, Mapping | None):
        raise SettingsError(f"the parameters of tool {name!r} must be a JSON schema, not {parameters!r}")
    known = {"description": "", **function, "parameters": _NO_PARAMETERS if parameters is None else parameters}
    return {"type": "function", "function": known}


_NO_PARAMETERS = {"type": "object", "properties": {}}
