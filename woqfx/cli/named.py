"""Options of algorithms by their whole name: `--option gptq.damp_percent=0.05`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import click

FLAG = click.Option(
    ["--option", "named"],
    multiple=True,
    metavar="NAME=VALUE",
    help="An option by its whole name, as in gptq.damp_percent=0.05: for algorithms such as awq+teq, whose parts have "
    "one of the same name. Repeatable.",
)


def read_named(texts: Iterable[str]) -> dict[str, Any]:
    """The options that were given so, by their whole names. Raises `click.BadParameter`."""
    return dict(_read(text) for text in texts)


def _read(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    kinds = _kinds()
    if not equals or name not in kinds:
        raise click.BadParameter(f"{text!r}: write one of {', '.join(kinds)}, then = and its value", param=FLAG)
    return name, click.types.convert_type(kinds[name])(value, FLAG)


def _kinds() -> dict[str, type[Any]]:
    from woqfx.plugins import registry

    return {
        f"{name}.{field.name}": type(field.default)
        for name in registry().names("algorithm")
        for field in dataclasses.fields(registry().algorithm(name).Options)
    }
