"""`woqfx export`: a checkpoint in the format of another program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from woqfx.cli.transcode import run, shared_options

if TYPE_CHECKING:
    from woqfx.progress import Progress


@click.command(
    "export",
    short_help="Write a checkpoint for another program.",
    epilog="""\b
Which format for which program:
  compressed-tensors   vLLM, SGLang, transformers
  gguf                 llama.cpp, Ollama, LM Studio
  bitsandbytes         transformers with bitsandbytes, QLoRA
  gptq, awq            GPTQModel, and where older files are expected

\b
Examples:
  woqfx export out/ --format compressed-tensors --out for-vllm/
  woqfx export out/ --format gptq --out for-gptqmodel/
  woqfx export out/ --format gguf --out for-llama-cpp/
  woqfx export out/ --format awq --requantize --out awq/

What each format holds, and with what that was checked: docs/formats.md
""",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--format", "to", required=True, metavar="NAME", help="The format to write.")
@shared_options
def command(
    model: Path, to: str, out: Path, requantize: bool, overwrite: bool, progress: Progress, quiet: bool
) -> None:
    """Write MODEL, a quantized checkpoint, in the format of another program, with its config and tokenizer.

    MODEL is a folder of woqfx quantize, or anything that woqfx convert takes. Codes and scales are carried over
    exactly. Where the format cannot hold a layer, nothing is written, and you are told which layers, why, and what
    would fit; --requantize then accepts the loss. One layer is in memory at a time. A run that was stopped goes on
    when the same command is given again.
    """
    run(model, to, out=out, requantize=requantize, overwrite=overwrite, progress=progress, quiet=quiet)
