"""A configuration beside arguments of the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from woqfx.errors import ConfigError
from woqfx.scheme import read_rules
from woqfx.vocabularies.reading import arguments_of
from woqfx.vocabularies.vocabulary import brief, same


def add_config(config: Any, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `woqfx.quantize` with those that a configuration asks for.

    Rules of both hold, the caller's after the configuration's. What both say, unless the caller says the default, is a
    `ConfigError`.
    """
    asked = arguments_of(config)
    problems = [
        f"{name}={brief(arguments[name])} is given beside the configuration, which asks for {brief(value)}; say it once"
        for name, value in asked.items()
        if name != "rules" and not same(arguments[name], defaults[name]) and not same(arguments[name], value)
    ]
    if problems:
        raise ConfigError(type(config).__name__, problems)
    rules = (*read_rules(asked.get("rules", ())), *read_rules(arguments["rules"]))
    return {**arguments, **asked, "rules": rules}
