"""What `convert` and `export` share: from a checkpoint of any format to another."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from woqfx.cli import text
from woqfx.cli.failures import INTERRUPTED, warn
from woqfx.cli.progressing import progress_options, shown

if TYPE_CHECKING:
    from woqfx.progress import Progress
    from woqfx.transcoding import Transcoding

F = TypeVar("F", bound=Callable[..., Any])

_SHOWN = 5  # of the weights that lost the most


def shared_options(command: F) -> F:
    """The flags of both commands."""
    for option in (
        progress_options,
        click.option(
            "--overwrite", is_flag=True, help="Replace an output in FOLDER; it stays until the new one is whole."
        ),
        click.option(
            "--requantize",
            is_flag=True,
            help="Quantize again what the format cannot hold as it is. What that loses is told for each layer.",
        ),
        click.option(
            "--out", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="Where to write it."
        ),
    ):
        command = option(command)
    return command


def run(model: Path, to: str, *, out: Path, requantize: bool, overwrite: bool, progress: Progress, quiet: bool) -> None:
    """Write the checkpoint `model` in the format `to`, and say what came of it."""
    from woqfx.transcoding import convert

    start = time.monotonic()
    try:
        done = convert(model, out, to=to, requantize=requantize, overwrite=overwrite, progress=shown(progress, quiet))
    except KeyboardInterrupt:
        warn(f"interrupted: what is done is safe in {out}; the same command goes on from there")
        raise click.exceptions.Exit(INTERRUPTED) from None
    for note in text.notes(done.notes):
        warn(note)
    if not quiet:
        _summarize(done, to, out, time.monotonic() - start)


def _summarize(done: Transcoding, to: str, out: Path, seconds: float) -> None:
    exact = done.weights - len(done.losses)
    lines = {
        "written": f"{out}, {to}, in {text.duration(seconds)}",
        "exact": f"{exact} of {done.weights} quantized weights, and {done.kept} tensors that were not quantized",
    }
    if done.losses:
        worst = sorted(done.losses.items(), key=lambda item: -item[1])[:_SHOWN]
        lines["lossy"] = (
            f"{len(done.losses)} weights were quantized again; the worst:\n"
            + "\n".join(f"{error:.4f}  {text.layer(name)}" for name, error in worst)
            + "\n(relative error |W - W'| / |W|; woqfx-export.json has all)"
        )
    if to == "woqfx":
        folder = shlex.quote(str(out))
        lines["next"] = f'woqfx generate {folder} -p "The capital of France is"\nwoqfx inspect {folder}'
    text.facts(text.console(), lines)
    sys.stdout.flush()
