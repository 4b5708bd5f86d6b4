"""Answers that follow a grammar, by llguidance: at each step only the tokens that can still lead to one are left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from woqfx.errors import GenerationError, SettingsError

# How JSON is written: on one line, and not squeezed, as models have mostly seen it.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Constraint:
    """What an answer must look like, from its first character to its last: a grammar as llguidance writes it."""

    grammar: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Constraint:
        """JSON that a schema (draft 2020-12) accepts, on one line: left free, small models fill it with white space.

        Properties that the schema does not name are not allowed, unless it says so. Raises `SettingsError` for a schema
        that llguidance does not read.
        """
        return cls(_grammar("json_schema", written_schema(schema)))

    @classmethod
    def json(cls) -> Constraint:
        """A JSON object of any content."""
        return cls.json_schema({"type": "object", "additionalProperties": True})

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Text that a regular expression (of Rust's kind) matches as a whole."""
        return cls(_grammar("regex", pattern))

    @classmethod
    def lark(cls, grammar: str) -> Constraint:
        """Text of a grammar in llguidance's variant of Lark's notation."""
        return cls(_grammar("lark", grammar))


class Grammars:
    """Constraints made ready for one tokenizer, which takes a while the first time."""

    def __init__(self, tokenizer: Any, ends: frozenset[int]) -> None:
        _library()
        import llguidance.hf

        try:
            self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, eos_token=sorted(ends))
        except ValueError as error:
            raise SettingsError(f"{type(tokenizer).__name__} cannot follow a grammar: {error}") from error

    def guide(self, constraint: Constraint) -> LibraryGuide:
        """What leads one answer along `constraint`."""
        return LibraryGuide(_library().LLMatcher(self._tokenizer, constraint.grammar, log_level=0))


class LibraryGuide:
    """One answer's way through a grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._check()

    def allowed(self, size: int) -> torch.Tensor:
        """Which tokens may come next, [size] of bool."""
        mask = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8).bool()
        self._check()
        allowed = torch.zeros(size, dtype=torch.bool)
        allowed[: len(mask)] = mask[:size]
        if not allowed.any():
            raise GenerationError("the grammar has come to a place where this tokenizer has no token to go on with")
        return allowed

    def take(self, token: int) -> None:
        """The token that came."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0]  # the parser's whole state is behind that
            raise GenerationError(f"the grammar cannot be followed: {reason}")


def _grammar(kind: str, source: str) -> str:
    matcher = _library().LLMatcher
    try:
        made = getattr(matcher, f"grammar_from_{kind}")(source)
    except ValueError as error:
        raise SettingsError(f"this is no JSON schema: {error}") from error
    problem = matcher.validate_grammar(made)
    if problem:
        raise SettingsError(f"the constraint cannot be used: {problem.strip()}")
    return str(made)


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise SettingsError("answers that follow a grammar need llguidance: pip install 'woqfx[langchain]'") from error
    return llguidance


def written_schema(schema: Mapping[str, Any]) -> str:
    """A JSON schema for llguidance: objects without further properties unless it says so, JSON on one line."""
    return json.dumps({**_closed(schema), "x-guidance": _JSON_STYLE})


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    values = ("default", "const", "enum", "examples")  # data, in which nothing is a schema
    inner = {name: part if name in values else _closed(part) for name, part in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        inner.setdefault("additionalProperties", False)
    return inner
