"""OpenAI's `response_format`: answers that are JSON, of a schema or of any."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from woqfx.errors import SettingsError
from woqfx.generating.grammar import Constraint


def response_constraint(form: Mapping[str, Any]) -> Constraint | None:
    """What a `response_format` allows; None if it is plain text. Raises `SettingsError` for one that is none."""
    if form.get("type") == "text":
        return None
    if form.get("type") == "json_object":
        return Constraint.json()
    return Constraint.json_schema(_schema(form))


def instructed(messages: Sequence[dict[str, Any]], form: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages, with a system message that tells what a `response_format` asks for."""
    if form.get("type") != "json_schema":
        return list(messages)
    written = json.dumps(_schema(form), ensure_ascii=False)
    told = f"Answer with one JSON object that follows this JSON schema:\n{written}"
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{told}"}, *messages[1:]]
    return [{"role": "system", "content": told}, *messages]


def _schema(form: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = form.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if form.get("type") != "json_schema" or not isinstance(schema, Mapping):
        raise SettingsError(
            "response_format must be {'type': 'text'}, {'type': 'json_object'} or "
            f"{{'type': 'json_schema', 'json_schema': {{'schema': ...}}}}, not {form!r}"
        )
    return schema
