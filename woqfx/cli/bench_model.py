"""`woqfx bench FOLDER`: how fast a whole model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from woqfx.cli import text
from woqfx.cli.models import load_quantized
from woqfx.cli.running import Running
from woqfx.errors import WoqfxError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from woqfx.speed import Reader, Speed


def show(
    folder: str, backend: Running, threads: int | None, prompt: int, new: int, against: str | None, *, as_json: bool
) -> None:
    """Measure the checkpoint in `folder`, in turn with the GGUF file `against`, and print what came out."""
    import torch

    from woqfx import memory
    from woqfx.speed import LlamaCppReader, Seq2SeqReader, reader_of, take_turns

    threads = threads or torch.get_num_threads()
    with memory.threads(threads):
        own = reader_of(load_quantized(folder, backend))
        own.check(prompt, new)
        readers: dict[str, Reader] = {f"woqfx {backend.name}": own}
        if against is not None:
            if isinstance(own, Seq2SeqReader):
                raise WoqfxError(f"{folder} is an encoder-decoder, and llama.cpp's package runs decoders: no --against")
            readers["llama.cpp"] = LlamaCppReader(Path(against), prompt + new + 8, threads)
        found = take_turns(readers, prompt, new, own.vocab_size)
    if as_json:
        click.echo(json.dumps(_json(found, folder, against, prompt, new, threads), indent=1))
        return
    out = text.console()
    text.facts(out, {"processor": _processor(threads), "prompt": f"{prompt} tokens", "then": f"{new} tokens"})
    out.print()
    table = text.Grid("by", "prompt, tokens/s", "new, tokens/s", numbers=("prompt, tokens/s", "new, tokens/s"))
    for name, speed in found.items():
        table.add(name, f"{speed.prompt:.0f}", f"{speed.new:.1f}")
    table.show(out)


def _json(
    found: Mapping[str, Speed], folder: str, against: str | None, prompt: int, new: int, threads: int
) -> dict[str, object]:
    return {
        "model": folder,
        "against": against,
        "processor": _processor(threads),
        "prompt_tokens": prompt,
        "new_tokens": new,
        "tokens_per_second": {name: speed.to_json() for name, speed in found.items()},
    }


def _processor(threads: int) -> str:
    from woqfx.cpu import this_cpu

    return f"{this_cpu().model}, {threads} thread{'s' * (threads > 1)}"
