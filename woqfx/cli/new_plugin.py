"""`woqfx new-plugin`: the skeleton of a plugin, to begin with."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from woqfx.cli import text


@click.command(
    "new-plugin",
    short_help="Write the skeleton of a plugin: a package with tests that pass.",
    epilog="""\b
Examples:
  woqfx new-plugin dtype int3
  woqfx new-plugin algorithm my-rounding --folder ~/src/my-rounding
""",
)
@click.argument("kind", metavar="KIND")
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where to write it, a folder that is not there yet.  [default: NAME]",
)
def command(kind: str, name: str, folder: Path | None) -> None:
    """Write a package that provides a new KIND (dtype, algorithm or backend) called NAME.

    It works as it is: install it and its tests pass. Then change what it does.
    """
    from woqfx.scaffold import new_plugin

    written = new_plugin(kind, name, folder or Path(name))
    here = shlex.quote(str(written))
    text.facts(
        text.console(), {"written": str(written), "next": f"pip install -e {here}\npytest {here}\nwoqfx plugins"}
    )
