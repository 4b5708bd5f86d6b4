"""Algorithms put together: "awq+gptq" takes the one's rescaling and the other's rounding.

Of several parts, all transform in turn, the last one that has a `round` of its own rounds, and all refine in turn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from woqfx.algorithm import Algorithm
from woqfx.errors import PluginError, SchemeError, WoqfxError
from woqfx.options import read_options
from woqfx.plugins import registry


@dataclass(frozen=True)
class Composition:
    """The algorithms of one run, in the order in which they were named; often it is one."""

    name: str
    parts: tuple[Algorithm, ...]

    @cached_property
    def rounder(self) -> Algorithm:
        """The part that rounds."""
        own = [part for part in self.parts if _overrides(part, "round")]
        return (own or list(self.parts))[-1]

    @property
    def rounds_with_data(self) -> bool:
        """Whether the part that rounds wants to know a weight's inputs."""
        return self.rounder.needs_data and _overrides(self.rounder, "round")

    @property
    def transformers(self) -> tuple[Algorithm, ...]:
        """The parts that rescale a block."""
        return tuple(part for part in self.parts if _overrides(part, "transform"))

    @property
    def refiners(self) -> tuple[Algorithm, ...]:
        """The parts that improve a rounded block."""
        return tuple(part for part in self.parts if _overrides(part, "refine"))

    @property
    def surveys(self) -> bool:
        """Whether any part looks at the whole model first."""
        return any(part.surveys for part in self.parts)

    @property
    def differentiates(self) -> bool:
        """Whether any part asks for gradients of a block."""
        weighs = self.rounds_with_data and self.rounder.weighs_tokens
        return weighs or any(part.differentiates for part in self.parts)

    @property
    def corrects_earlier(self) -> bool:
        """Whether any part shall make up for what rounding earlier blocks has done."""
        return any(part.corrects_earlier for part in self.refiners)

    @property
    def needs_data(self) -> bool:
        """Whether any part looks at calibration data."""
        return any(part.needs_data for part in self.parts)


def read_composition(name: str, options: Mapping[str, Any]) -> Composition:
    """From "awq+gptq", and options by their name, or by `gptq.damp_percent` where several parts have one of that name.

    Raises `UnknownNameError` for an algorithm, and `SchemeError` for an option, that is not there.
    """
    kinds = parts_of(name)
    given: dict[str, dict[str, Any]] = {kind.name: {} for kind in kinds}
    for key, value in options.items():
        owner, option = _owner(key, kinds)
        given[owner][option] = value
    return Composition(
        name, tuple(kind(read_options(f"algorithm {kind.name}", kind.Options, given[kind.name])) for kind in kinds)
    )


def parts_of(name: str) -> tuple[type[Algorithm], ...]:
    """The classes that a name stands for. Raises `UnknownNameError`; `SchemeError` if one is empty or named twice."""
    names = name.split("+")
    if not all(names):
        raise SchemeError(f"algorithm {name!r} has an empty part: write names, with + between two of them")
    repeated = next((part for part in names if names.count(part) > 1), None)
    if repeated is not None:
        raise SchemeError(f"algorithm {name!r} names {repeated!r} twice: name each part once")
    return tuple(registry().algorithm(part) for part in names)


def _owner(key: str, kinds: tuple[type[Algorithm], ...]) -> tuple[str, str]:
    """Which part an option belongs to, and its name there."""
    owner, dot, option = key.partition(".")
    if dot and owner in [kind.name for kind in kinds]:
        return owner, option
    owners = [kind.name for kind in kinds if key in {field.name for field in dataclasses.fields(kind.Options)}]
    if len(owners) == 1 or len(kinds) == 1:
        return (*owners, kinds[0].name)[0], key
    if owners:
        choices = " or ".join(f"{owner}.{key}" for owner in owners)
        raise SchemeError(
            f"option {key!r} could be that of {' or '.join(owners)}: write {choices} (--option {owners[0]}.{key}=...)"
        )
    known = [f"{kind.name}.{field.name}" for kind in kinds for field in dataclasses.fields(kind.Options)]
    raise SchemeError(f"no part of the algorithm has an option {key!r}; there are {', '.join(sorted(known)) or 'none'}")


def _overrides(part: Algorithm, method: str) -> bool:
    return getattr(type(part), method) is not getattr(Algorithm, method)


@contextmanager
def blamed(part: Algorithm, subject: str) -> Iterator[None]:
    """Turn what an algorithm raises, unless it is one of woqfx, into a `PluginError` that names it and the subject."""
    try:
        yield
    except WoqfxError:
        raise
    except Exception as error:  # an algorithm is anyone's code
        raise PluginError(f"{subject}: {titled(part)} failed: {error!r}") from error


def titled(part: Algorithm) -> str:
    """How messages call an algorithm."""
    if part.name not in registry().names("algorithm"):  # woqfx's own, which nobody can ask for
        return f"algorithm {part.name}"
    return f"algorithm {part.name} ({registry().provider('algorithm', part.name).title})"
