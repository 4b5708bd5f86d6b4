"""The options of algorithms and backends: frozen dataclasses whose fields are names, defaults and help."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from woqfx.errors import SchemeError
from woqfx.wording import nearest


@dataclass(frozen=True)
class NoOptions:
    """The options of what has none."""


def option(default: Any, help: str) -> Any:
    """A field of `Options` with its help text."""
    return dataclasses.field(default=default, metadata={"help": help})


def read_options(owner: str, options: type[Any], given: Mapping[str, Any]) -> Any:
    """Build the options of `owner` ("algorithm gptq"); names and simple types are checked, errors list what exists."""
    if not isinstance(given, Mapping):
        raise SchemeError(f"the options of {owner} are given as a mapping from names to values, not as {given!r}")
    fields = {field.name: field for field in dataclasses.fields(options)}
    for key, value in given.items():
        if key not in fields:
            known = ", ".join(sorted(fields)) or "none"
            hint = f". Did you mean {near[0]!r}?" if (near := nearest(key, fields)) else ""
            raise SchemeError(f"{owner} has no option {key!r}; its options: {known}{hint}")
        kind = type(fields[key].default)
        allowed = (int, float) if kind is float else kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise SchemeError(f"option {key} of {owner} takes {kind.__name__}, not {value!r}")
    return options(**given)
