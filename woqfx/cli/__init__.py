"""The command line. A module for each command; torch is imported by what a command does, not to show its help."""

from __future__ import annotations

import atexit
import gc
import importlib

import click

import woqfx
from woqfx.cli.failures import reported
from woqfx.wording import nearest

#: Each command's module, in the order in which help lists them.
_COMMANDS = {
    "quantize": "quantize",
    "tune": "tune",
    "plan": "plan",
    "inspect": "inspect",
    "report": "report",
    "generate": "generate",
    "chat": "chat",
    "serve": "serve",
    "eval": "evaluate",
    "bench": "bench",
    "convert": "convert",
    "export": "export",
    "plugins": "plugins",
    "new-plugin": "new_plugin",
}


class _Commands(click.Group):
    """The commands, each imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"woqfx.cli.{_COMMANDS[cmd_name]}").command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = nearest(args[0], _COMMANDS)
        if near and args[0] not in _COMMANDS:
            ctx.fail(f"there is no command {args[0]!r}; did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        collect_less_garbage()
        with reported():
            return super().invoke(ctx)


def collect_less_garbage() -> None:
    """PyTorch and transformers make millions of objects that live to the end: going through them takes seconds."""
    gc.set_threshold(1_000_000, 50, 50)
    atexit.register(gc.freeze)


@click.group(
    name="woqfx",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Try:
  woqfx plan HuggingFaceTB/SmolLM2-135M-Instruct
  woqfx quantize HuggingFaceTB/SmolLM2-135M-Instruct --dtype nf4 --out smol-nf4
  woqfx generate smol-nf4 -p "The capital of France is"

Each command has its own help, with examples: woqfx quantize --help
""",
)
@click.version_option(woqfx.__version__, prog_name="woqfx")
def main() -> None:
    """Make language models smaller and faster on ordinary CPUs, by quantizing their weights.

    Everything that can vary is a plugin: how a number is stored (dtype), how arithmetic is done (compute dtype), how
    a weight lands on its grid (algorithm), and what runs the result (backend).
    """
