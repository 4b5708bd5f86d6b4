"""Writes cli.md from what `--help` says, with the built-in plugins alone.

    python docs/make_cli.py [--check]

With --check nothing is written; the exit code is 1 if the page is not current.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click
from click.testing import CliRunner

from woqfx.cli import main

PAGE = Path(__file__).parent / "cli.md"
WIDTH = 96

INTRODUCTION = """\
# The command line

This page is what `woqfx --help` and the commands' own help say. `make docs` writes it.

Exit codes: 0 done; 1 an error, told in one message on standard error; 2 a request that cannot be meant or carried out,
with every reason at once; 130 stopped by Ctrl-C. Results go to standard output, progress and messages to standard
error. `WOQFX_DEBUG=1` shows tracebacks.

Which plugins are loaded: `WOQFX_PLUGINS=a,b,no:c` loads `a` and `b` too and never `c`;
`WOQFX_DISABLE_PLUGIN_AUTOLOAD=1` loads nothing else; `WOQFX_STRICT_PLUGINS=1` makes the first problem of any plugin an
error.
"""


def page() -> str:
    """The page's content."""
    names = main.list_commands(click.Context(main))
    parts = [INTRODUCTION, _section("woqfx", []), *(_section(f"woqfx {name}", [name]) for name in names)]
    return "\n".join(parts)


def _section(title: str, arguments: list[str]) -> str:
    result = CliRunner().invoke(main, [*arguments, "--help"], terminal_width=WIDTH, catch_exceptions=False)
    text = "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())
    return f"## {title}\n\n```text\n{text}\n```\n"


def built_ins_only() -> None:
    """Other plugins of this machine do not belong into the page."""
    own = [f"woqfx:{point.name}" for point in entry_points(group="woqfx") if point.dist and point.dist.name == "woqfx"]
    os.environ |= {"WOQFX_DISABLE_PLUGIN_AUTOLOAD": "1", "WOQFX_PLUGINS": ",".join(own)}


if __name__ == "__main__":
    built_ins_only()
    current = page()
    if "--check" not in sys.argv:
        PAGE.write_text(current)
    elif not PAGE.is_file() or PAGE.read_text() != current:
        sys.exit(f"{PAGE} is not current: make docs")
