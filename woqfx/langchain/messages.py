"""LangChain's messages as chat templates take them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages

from woqfx.errors import SettingsError

# What a model thought before it answered is not shown to it again.
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_content")


def template_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The messages as {"role", "content", ...}, with the arguments of calls as objects.

    Raises `SettingsError` for content that is no text.
    """
    return [_converted(message) for message in messages]


def _converted(message: BaseMessage) -> dict[str, Any]:
    if isinstance(message.content, list):
        blocks = [block for block in message.content if isinstance(block, str) or block.get("type") not in _THOUGHTS]
        message = message.model_copy(update={"content": blocks})
    try:
        converted = convert_to_openai_messages(message, text_format="string")
    except ValueError as error:
        raise SettingsError(f"a {message.type} message holds what cannot be read: {error}") from error
    assert isinstance(converted, dict)
    if isinstance(converted.get("content"), list):
        kinds = sorted({str(block.get("type")) for block in converted["content"]} - {"text"})
        raise SettingsError(f"a {message.type} message holds {', '.join(kinds)}: the model reads text alone")
    for call in converted.get("tool_calls") or ():
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    if isinstance(message, AIMessage) and message.invalid_tool_calls:
        spoilt = [str(call["args"]) for call in message.invalid_tool_calls]
        converted["content"] = "\n".join([*filter(None, [converted["content"]]), *spoilt])
    return converted
