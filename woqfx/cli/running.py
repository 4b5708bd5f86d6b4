"""What commands that run a model share: `--backend`, and the backend's own options."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import click


@dataclass(frozen=True)
class Running:
    """A backend by its name, and what it is told."""

    name: str = "torch_cpu"
    options: Mapping[str, Any] = field(default_factory=dict)


_BACKEND = click.Option(
    ["--backend"], default=Running.name, show_default=True, metavar="NAME", help="What runs the model."
)
_OPTION = click.Option(
    ["--backend-option", "backend_options"],
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the backend, as in kv=int8; they are listed below. Repeatable.",
)


class RunCommand(click.Command):
    """A command that runs a model. Its callback gets `backend`, a `Running`, beside its own arguments."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own parameters, then the backend's."""
        *own, help_option = super().get_params(ctx)
        return [*own, _BACKEND, _OPTION, help_option]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Make one thing of the backend's name and its options."""
        rest = super().parse_args(ctx, args)
        name = ctx.params["backend"]
        ctx.params["backend"] = Running(name, read_options_of(name, ctx.params.pop("backend_options")))
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The flags, then what can be said to each backend."""
        super().format_options(ctx, formatter)
        from woqfx.plugins import registry

        for name in registry().names("backend"):
            found = [(f"{one.name}={_spelled(one.default)}", one.metadata.get("help", "")) for one in _fields(name)]
            if found:
                with formatter.section(f"Options of backend {name}, with their defaults"):
                    formatter.write_dl(found)


def read_options_of(backend: str, texts: Iterable[str]) -> dict[str, Any]:
    """The options that were given as NAME=VALUE. Raises `click.BadParameter`, `UnknownNameError` for the backend."""
    given = [text.partition("=") for text in texts]
    if not given:
        return {}  # nothing to look up: torch need not be imported yet
    kinds = {one.name: click.types.convert_type(type(one.default)) for one in _fields(backend)}
    for name, equals, _ in given:
        if name not in kinds:
            known = ", ".join(kinds) or "none"
            raise click.BadParameter(f"backend {backend} has no option {name!r}; its options: {known}", param=_OPTION)
        if not equals:
            raise click.BadParameter(f"{name!r} has no value: write {name}=VALUE", param=_OPTION)
    return {name: kinds[name](value, _OPTION) for name, _, value in given}


def _fields(backend: str) -> tuple[dataclasses.Field[Any], ...]:
    from woqfx.plugins import registry

    return dataclasses.fields(registry().backend(backend).Options)


def _spelled(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
