"""How parameters are read: the few ways that most of them share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from woqfx.vocabularies.vocabulary import Reader, Reading, same

_PLAIN_NAME = re.compile(r"[\w.-]+")


def asks(argument: str) -> Reader:
    """The value is an argument of `woqfx.quantize`, as it is; None leaves woqfx's own default."""

    def read(reading: Reading, name: str, value: Any) -> None:
        if value is not None:
            reading.ask(**{argument: value})

    return read


def option(key: str) -> Reader:
    """The value is an option of the algorithm, as it is; None leaves the algorithm's own default."""

    def read(reading: Reading, name: str, value: Any) -> None:
        if value is not None:
            reading.option(key, value)

    return read


def chosen(choices: Mapping[Any, Mapping[str, Any]], remedy: str = "") -> Reader:
    """The value is one of few, each of which stands for arguments."""

    def read(reading: Reading, name: str, value: Any) -> None:
        for choice, arguments in choices.items():
            if same(value, choice):
                reading.ask(**arguments)
                return
        reading.refuse(name, f"it is one of {', '.join(map(repr, choices))}" + (f"; {remedy}" if remedy else ""))

    return read


def yes_or_no(then: Reader) -> Reader:
    """The value is true or false, and is read by `then`."""

    def read(reading: Reading, name: str, value: Any) -> None:
        if isinstance(value, bool):
            then(reading, name, value)
        else:
            reading.refuse(name, "it is True or False")

    return read


def without_effect(why: str, *usual: Any, among: Iterable[Any] = ()) -> Reader:
    """Any value is accepted, or any `among` some, with a notice unless it is the default or one of the `usual`."""
    known = tuple(among)

    def read(reading: Reading, name: str, value: Any) -> None:
        default = reading.vocabulary.default(name)
        if known and not any(same(value, one) for one in (default, *usual, *known)):
            reading.refuse(name, f"it is one of {', '.join(map(repr, known))}")
        elif not any(same(value, one) for one in (default, *usual)):
            reading.notice(name, why)

    return read


def refused(why: str, *usual: Any) -> Reader:
    """Nothing but the default, or one of the `usual`, can be honoured."""

    def read(reading: Reading, name: str, value: Any) -> None:
        if not any(same(value, one) for one in (reading.vocabulary.default(name), *usual)):
            reading.refuse(name, why)

    return read


def kept_modules(reading: Reading, name: str, value: Any) -> None:
    """The value lists modules that are not quantized."""
    if value is None:
        return
    if not isinstance(value, list | tuple | set | frozenset) or not all(isinstance(one, str) and one for one in value):
        reading.refuse(name, "it is a list of module names")
        return
    for module in sorted(value) if isinstance(value, set | frozenset) else value:
        pattern = module_pattern(module)
        if pattern is None:
            reading.refuse(name, f"{module!r} is neither a module's name nor a regular expression")
        else:
            reading.rule(pattern, "keep")


def module_pattern(module: str) -> str | None:
    """A rule's pattern for a module of this name anywhere in the tree, and for all that is inside it.

    A name is one or more whole components of a dotted path: `o_proj`, `layers.0`, `mlp.gate`. What is no name is a
    regular expression for such components; None if it is none.
    """
    inner = re.escape(module) if _PLAIN_NAME.fullmatch(module) else f"(?:{module})"
    try:
        re.compile(inner)
    except re.error:
        return None
    return rf"re:(?:.*\.)?{inner}(?:\..*)?"
