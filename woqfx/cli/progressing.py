"""`--progress` and `--quiet`, for the commands that go through a model's tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from woqfx.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])


def progress_options(command: F) -> F:
    """Add the two flags."""
    progress = click.option(
        "--progress",
        type=click.Choice(["auto", "bar", "lines", "json", "none"]),
        default="auto",
        show_default=True,
        help="How to show progress, on standard error: a bar, a line of text now and then, a JSON object for each "
        "event, or not at all. auto is a bar on a terminal and lines elsewhere.",
    )
    quiet = click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
    return progress(quiet(command))


def shown(progress: Progress, quiet: bool) -> Progress:
    """What to show, after both flags."""
    if quiet:
        return "none"
    if progress == "auto" and not sys.stderr.isatty():
        return "lines"
    return progress
