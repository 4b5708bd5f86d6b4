"""Loading models and their tokenizers for the commands that run them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from woqfx.errors import CheckpointError, SourceError

if TYPE_CHECKING:
    from torch import nn


def load_quantized(folder: str, backend: str) -> nn.Module:
    """A checkpoint, ready to run. Of anything else, the error says how to make one."""
    from woqfx.api import load

    if not Path(folder).is_dir():
        raise CheckpointError(
            f"{folder} is not a folder with a checkpoint; make one first:\n"
            f"  woqfx quantize {shlex.quote(folder)} --out FOLDER"
        )
    _quieten()
    return load(folder, backend=backend)


def load_any(model: str, backend: str) -> nn.Module:
    """A checkpoint, or a model that is not quantized."""
    from woqfx.disk.checkpoint import is_checkpoint
    from woqfx.original import load_original
    from woqfx.plugins import registry

    path = Path(model)
    if path.is_dir() and (is_checkpoint(path) or registry().format_of(path)):
        return load_quantized(model, backend)
    _quieten()
    return load_original(model)


def load_tokenizer(model: str) -> Any:
    """The tokenizer in a model's folder or GGUF file, or on the Hub. Raises `SourceError`."""
    from transformers import AutoTokenizer

    from woqfx.source.hub import resolve

    _quieten()
    path = resolve(model)
    try:
        if path.is_file():
            return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers' parsers on files of any kind
        raise SourceError(
            f"{path} has no tokenizer that transformers can read: {str(error).splitlines()[0]}; put the original's "
            "tokenizer.json and tokenizer_config.json there"
        ) from error


def _quieten() -> None:
    """Transformers' own bars and advice would break into what the command prints."""
    from transformers.utils import logging

    quiet: Any = logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
