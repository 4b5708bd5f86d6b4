"""`woqfx quantize`: from a model to a checkpoint."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from woqfx.cli import text
from woqfx.cli.failures import INTERRUPTED, warn
from woqfx.cli.plan import show
from woqfx.cli.progressing import progress_options, shown
from woqfx.cli.request import READING, RequestCommand, planned

if TYPE_CHECKING:
    from woqfx.planned import Plan
    from woqfx.progress import Progress


@click.command(
    "quantize",
    cls=RequestCommand,
    short_help="Quantize a model into a checkpoint.",
    epilog="""\b
Examples:
  woqfx quantize path/to/model --out out/
  woqfx quantize model.gguf --dtype nf4 --double-quant --out out/
  woqfx quantize organisation/name --dtype int4_clip --rule "*.down_proj=int8" --out out/
  woqfx quantize path/to/model --dtype int8 --group-size -1 --compute-dtype int8 --out out/

See first what would happen, with the same flags: woqfx plan path/to/model
""",
)
@click.argument("model")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="Where to write it.")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint in FOLDER; it stays until the new one is whole.")
@progress_options
def command(model: str, out: Path, overwrite: bool, progress: Progress, quiet: bool, **request: Any) -> None:
    """Quantize the weights of MODEL, and write a checkpoint that runs on any machine.

    MODEL is a folder, a .gguf file, or a name on the Hugging Face Hub (organisation/name). It is read a few tensors at
    a time, so memory does not depend on its size. A run that was stopped goes on when the same command is given again.

    Linear layers and stacks of experts are quantized; embeddings and the output head are kept, unless a --rule says
    otherwise.
    """
    import torch

    from woqfx.api import quantize_to
    from woqfx.engine import check_output
    from woqfx.source import open_source

    with text.waiting(READING):
        source = open_source(model)
    check_output(source, out, overwrite=overwrite)
    mixed = request["target_bits"] is not None
    plan = planned(source, request, workers=torch.get_num_threads())
    if mixed and not quiet:
        show(plan)  # with its warnings
    else:
        for warning in plan.warnings:
            warn(warning)
    plan.check()
    # A tensor for each thread beats all threads on one tensor: nobody waits, least of all on a busy machine. The
    # number of PyTorch's threads is the process's, and this process is ours.
    workers = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.monotonic()
    try:
        quantize_to(source, plan, out, overwrite=overwrite, workers=workers, progress=shown(progress, quiet))
    except KeyboardInterrupt:
        _say_how_to_go_on(out)
        raise click.exceptions.Exit(INTERRUPTED) from None
    if not quiet:
        _summarize(plan, out, time.monotonic() - start)


def _say_how_to_go_on(out: Path) -> None:
    from woqfx.inspection import unfinished

    if run := unfinished(out):
        warn(f"interrupted: {run.tensors} tensors are safe in {out}; the same command goes on from there")
    else:
        warn("interrupted before anything was written")


def _summarize(plan: Plan, out: Path, seconds: float) -> None:
    from woqfx.inspection import Inspection, inspect

    made = inspect(out, plan.request.backend)
    assert isinstance(made, Inspection)
    kinds = sorted({str(layer.float_dtype).removeprefix("torch.") for layer in plan.layers})
    smaller = plan.source_bytes / max(1, made.nbytes)
    folder = shlex.quote(str(out))
    text.facts(
        text.console(),
        {
            "written": f"{out}, in {text.duration(seconds)}",
            "quantized": f"{len(made.weights)} layers, at {made.bits_per_weight:.2f} bits per weight",
            "size": f"{text.size(plan.source_bytes)} ({', '.join(kinds)}) -> {text.size(made.nbytes)}, "
            f"{smaller:.1f} times smaller",
            "worst": "\n".join(f"{weight.error:.4f}  {text.layer(weight.name)}" for weight in made.worst(3))
            + "\n(relative error |W - W'| / |W|)",
            "next": f'woqfx generate {folder} -p "The capital of France is"\n'
            f"woqfx eval {folder} --against {shlex.quote(plan.source)}\nwoqfx inspect {folder}",
        },
    )
