"""`woqfx tune`: a checkpoint, as a whole, nearer to the model that it was made from."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from woqfx.cli import calibration, text
from woqfx.cli.failures import INTERRUPTED, warn

if TYPE_CHECKING:
    from woqfx.tuning.tune import Tuning


@click.command(
    "tune",
    short_help="Tune a checkpoint as a whole against its original.",
    params=[flag for flag in calibration.FLAGS if flag.name != "propagate"],
    epilog="""\b
Examples:
  woqfx tune out/ --original path/to/model --out tuned/
  woqfx tune out/ --original path/to/model --out tuned/ --passes 4 --products bf16
  woqfx tune model-Q4_0.gguf --original path/to/model --out tuned/ --samples 64
""",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--original", required=True, metavar="MODEL", help="A folder, a .gguf file, or a name on the Hub.")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="Where to write it.")
@click.option("--passes", type=float, default=2.0, show_default=True, metavar="X", help="Over the data.")
@click.option(
    "--rate",
    type=float,
    default=0.0001,
    show_default=True,
    metavar="X",
    help="How far numbers move in a step at first, relative to their size.",
)
@click.option(
    "--products",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="In what the models are run; bf16 takes half the time on a CPU with instructions for it.",
)
@click.option("--seed", default=0, show_default=True, metavar="N", help="Decides the order of the data.")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint in FOLDER; it stays until the new one is whole.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
def command(model: Path, original: str, out: Path, overwrite: bool, quiet: bool, **given: Any) -> None:
    """Tune MODEL, a quantized checkpoint in any format that is read here, against the model that it was made from.

    Quantizing looks at a block at a time. This looks at what the whole model predicts, and lessens its KL divergence
    from the original by gradients of groups' scales and of norms' weights and biases, on calibration data. Codes stay,
    and so does the size. It is judged on an eighth of the data, which is not learned from, and written if it is better.

    Both models are in memory, in float32: how much that takes is said first. The same command goes on where one was
    stopped.
    """
    from woqfx.tuning.options import TuningOptions
    from woqfx.tuning.tune import tune, tuning_memory

    data = calibration.gather(given)
    options = TuningOptions(**given)
    start = time.monotonic()
    if not quiet:
        text.facts(text.console(), {"memory": f"about {text.size(tuning_memory(model))}, and the runs' own"})
    try:
        with text.bar("tuning") as bar:
            found = tune(
                model, original, out, data=data, options=options, overwrite=overwrite, report=None if quiet else bar
            )
    except KeyboardInterrupt:
        _say_how_to_go_on(out)
        raise click.exceptions.Exit(INTERRUPTED) from None
    if not found.better:
        warn(f"it did not come nearer ({_change(found)}), and nothing was written; a lower rate or more data may help")
        raise click.exceptions.Exit(1)
    if not quiet:
        folder = shlex.quote(str(out))
        text.facts(
            text.console(),
            {
                "written": f"{out}, in {text.duration(time.monotonic() - start)}",
                "KL": f"{_change(found)} nats per token, KL(original || model), on {found.held_out} sequences beside "
                f"the {found.sequences} that it learned from",
                "next": f"woqfx eval {folder} --against {shlex.quote(original)}",
            },
        )
        sys.stdout.flush()


def _say_how_to_go_on(out: Path) -> None:
    from woqfx.inspection import unfinished

    if run := unfinished(out):
        warn(f"interrupted: {run.steps} steps are safe in {out}; the same command goes on from there")
    else:
        warn("interrupted before anything was written")


def _change(found: Tuning) -> str:
    return f"{found.before:.5f} to {found.after:.5f}"
