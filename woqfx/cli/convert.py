"""`woqfx convert`: another program's checkpoint into woqfx's own format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from woqfx.cli.transcode import run, shared_options

if TYPE_CHECKING:
    from woqfx.progress import Progress


@click.command(
    "convert",
    short_help="Convert another program's checkpoint.",
    epilog="""\b
Examples:
  woqfx convert some-gptq-folder/ --out out/
  woqfx convert model-Q4_K_M.gguf --out out/
  woqfx convert organisation/model-awq --out out/
  woqfx convert some-awq-folder/ --to gptq --out for-others/
""",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--to", default="woqfx", show_default=True, metavar="NAME", help="The format to write.")
@shared_options
def command(
    model: Path, to: str, out: Path, requantize: bool, overwrite: bool, progress: Progress, quiet: bool
) -> None:
    """Write MODEL, a checkpoint in any format that is read here, in woqfx's own format.

    MODEL is a folder, a .gguf file or a name on the Hugging Face Hub (organisation/name) that is quantized already; its
    format is found by looking. (It runs as it is, too:
    woqfx generate MODEL.) Codes, scales and zero points are carried over as they are, so nothing is lost; what no grid
    here holds is dequantized, and you are told. One layer is in memory at a time. A run that was stopped goes on
    when the same command is given again.
    """
    run(model, to, out=out, requantize=requantize, overwrite=overwrite, progress=progress, quiet=quiet)
