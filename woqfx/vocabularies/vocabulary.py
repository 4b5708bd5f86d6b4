"""Other libraries' configurations as data: their parameters, and what each one asks woqfx for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from woqfx.errors import ConfigError


class Reading:
    """What is found while one configuration is read.

    `arguments` are those of `woqfx.quantize`. `problems` say what cannot be done, and `notices` what has no effect
    here; both name the parameter and its value.
    """

    def __init__(self, vocabulary: Vocabulary, values: Mapping[str, Any]) -> None:
        self.vocabulary = vocabulary
        self.values = values
        self.arguments: dict[str, Any] = dict(vocabulary.always)
        self.problems: list[str] = []
        self.notices: list[str] = []

    def __getitem__(self, name: str) -> Any:
        """A parameter's value; its default if the configuration does not have it."""
        return self.values.get(name, self.vocabulary.default(name))

    def ask(self, **arguments: Any) -> None:
        """Pass arguments to `woqfx.quantize`."""
        self.arguments |= arguments

    def option(self, name: str, value: Any) -> None:
        """Pass an option to the algorithm."""
        self.arguments.setdefault("options", {})[name] = value

    def rule(self, pattern: str, change: Any) -> None:
        """Add a rule about which layers are quantized, and how."""
        self.arguments.setdefault("rules", []).append((pattern, change))

    def refuse(self, name: str, why: str) -> None:
        """Say why a parameter's value cannot be honoured."""
        self.problems.append(f"{name}={brief(self[name])}: {why}")

    def notice(self, name: str, why: str) -> None:
        """Say why a parameter's value changes nothing."""
        self.notices.append(f"{self.vocabulary.title}: {name}={brief(self[name])} has no effect: {why}")


#: Takes the reading, the parameter's name and its value.
Reader: TypeAlias = Callable[[Reading, str, Any], None]


@dataclass(frozen=True)
class Parameter:
    """One parameter: its default in its own library, how it is read, and in words what it does here."""

    name: str
    default: Any
    read: Reader
    does: str


@dataclass(frozen=True)
class Vocabulary:
    """The parameters of one configuration class. `always` are arguments that it asks for whatever its parameters."""

    title: str
    parameters: tuple[Parameter, ...]
    always: Mapping[str, Any] = field(default_factory=dict)

    def default(self, name: str) -> Any:
        """A parameter's default."""
        return next(parameter.default for parameter in self.parameters if parameter.name == name)

    def read(self, values: Mapping[str, Any]) -> Reading:
        """Read a configuration's values. Nothing is raised: see `Reading.problems`."""
        known = {parameter.name for parameter in self.parameters}
        reading = Reading(self, values)
        for name in values:
            if name not in known:
                reading.problems.append(f"{name}: there is no such parameter; there are {', '.join(sorted(known))}")
        for parameter in self.parameters:
            parameter.read(reading, parameter.name, reading[parameter.name])
        return reading


def brief(value: Any) -> str:
    """A value for a message: a large object by its type alone."""
    plain = value is None or isinstance(value, bool | int | float | str | list | tuple | dict)
    text = repr(value) if plain or type(value).__module__ == "torch" else f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def same(value: Any, other: Any) -> bool:
    """Whether two values are equal and of one kind; objects that do not compare to a truth are not equal."""
    return value is other or (type(value) is type(other) and bool(value == other))


def check(reading: Reading) -> None:
    """Raise `ConfigError` with everything that was found wrong."""
    if reading.problems:
        raise ConfigError(reading.vocabulary.title, reading.problems)
