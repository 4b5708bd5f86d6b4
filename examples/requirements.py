"""Run every code block of the documents that woqfx was asked for from, and print what came out.

Nothing in a block is changed but its import lines and the model: a tiny T5 and a tiny llama with random weights, or
your own: `python examples/requirements.py FOLDER`.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path

import click

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "langchain_adapter")]

from snippets import DOCUMENTS, run, snippets  # noqa: E402
from tiny_models import save_tokenizer, tiny_model  # noqa: E402


def tiny(folder: Path, family: str) -> Path:
    """A model with random weights: its answers are noise."""
    longer = {"max_position_embeddings": 512} if family == "llama" else {}
    tiny_model(family, vocab_size=259, **longer).save_pretrained(folder / family)
    save_tokenizer(folder / family)
    return folder / family


def main() -> int:
    """Print a line for each block; returns how many failed."""
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    failed = 0
    with tempfile.TemporaryDirectory() as made:
        models = [Path(name) for name in sys.argv[1:]] or [tiny(Path(made), family) for family in ("t5", "llama")]
        for model in models:
            encoder = bool(AutoConfig.from_pretrained(model).is_encoder_decoder)
            for document in DOCUMENTS:
                failed += report(document, model, encoder=encoder)
    return failed


def report(document: Path, model: Path, *, encoder: bool) -> int:
    """The lines of one document and model; returns 1 if a block failed, which ends the document."""
    blocks = snippets(document)
    for block in blocks:
        if block.kind == "install":
            click.echo(f"{block.name:44} {model.name:8} installs the original: pip install 'woqfx[langchain]' instead")
        elif block.kind == "signature":
            names = len(block.parameters())
            known = f"{names} parameters, all in docs/configurations.md" if names > 1 else "of a method"
            click.echo(f"{block.name:44} {'':8} a signature: {known}")
    try:
        for block, printed in run([b for b in blocks if b.kind == "code"], str(model), encoder=encoder, namespace={}):
            said = f", and printed {printed[:40]!r}" if printed else ""
            click.echo(f"{block.name:44} {model.name:8} ran{said}")
    except Exception:
        traceback.print_exc()
        click.echo(f"{document.name:44} {model.name:8} FAILED")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
