"""How a model writes the calls of tools: found out from its own chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from woqfx.errors import SettingsError

Message = Mapping[str, Any]

_NAME, _KEY, _VALUE = "woqfx_probe", "woqfx_key", "woqfx_value"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}, "required": [_KEY]},
    },
}
_ID = "probe0000"
_PROBE_CALL = {
    "id": _ID,
    "type": "function",
    "function": {"name": _NAME, "arguments": {_KEY: _VALUE}},
}


class Renders(Protocol):
    """What `TextGenerator.render` does."""

    def __call__(self, messages: Sequence[Message], /, *, answer: bool = True, **template: Any) -> str:  # noqa: D102
        ...


@dataclass(frozen=True)
class Dialect:
    """A call is `before` NAME `between` ARGUMENTS `after`, with the arguments as JSON.

    `native` says that the chat template itself tells the model of tools; else they are put into the system message.
    """

    before: str
    between: str
    after: str
    native: bool

    @property
    def marker(self) -> str:
        """The beginning that tells a call from text."""
        end = next((at for at, character in enumerate(self.before) if character.isspace()), len(self.before))
        return self.before[:end]

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """A call as the model would write it."""
        return f"{self.before}{name}{self.between}{json.dumps(arguments, ensure_ascii=False)}{self.after}"


#: For models whose template knows of no tools, or writes calls in a way that is not JSON.
OWN = Dialect('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", native=False)


def find_dialect(render: Renders, end_of_turn: str) -> Dialect:
    """The dialect of a chat template: what it makes of a call is looked at, so no list of models is needed."""
    question = {"role": "user", "content": "Hello"}
    call = {"role": "assistant", "content": "", "tool_calls": [_PROBE_CALL]}
    try:
        told = render([question], tools=[_PROBE_TOOL])
        if _NAME not in told:
            return OWN
        written = render([question, call], answer=False, tools=[_PROBE_TOOL])
    except SettingsError:  # a template that does not take calls at all
        return OWN
    found = _take_apart(_after(told, written), end_of_turn)
    return OWN if found is None else found


def _after(told: str, written: str) -> str:
    """What the template wrote for the call: what follows the question."""
    if written.startswith(told):
        return written[len(told) :]
    same = next(
        (at for at, (a, b) in enumerate(zip(told, written, strict=False)) if a != b), min(len(told), len(written))
    )
    return written[same:]


def _take_apart(written: str, end_of_turn: str) -> Dialect | None:
    before, found, rest = written.partition(_NAME)
    at = rest.find("{")
    if not found or at < 0 or not before.strip():
        return None
    try:
        arguments, end = json.JSONDecoder().raw_decode(rest, at)
    except json.JSONDecodeError:
        return None
    if arguments != {_KEY: _VALUE}:
        return None
    after = rest[end:].partition(end_of_turn)[0] if end_of_turn else rest[end:]
    if _ID in before + rest[:at] + after:  # ids that the model would have to make up
        return None
    return Dialect(before.lstrip(), rest[:at], after.rstrip(), native=True)
