"""Loading models and their tokenizers for the commands that run them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from woqfx.cli import text
from woqfx.cli.running import Running
from woqfx.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

    from woqfx.generating import TextGenerator

#: What is said while a model, torch and transformers are loaded.
LOADING = "loading the model"


def load_generator(folder: str, backend: Running, **settings: int) -> TextGenerator:
    """A checkpoint and its tokenizer, ready for requests. `settings` are those of `TextGenerator`."""
    with text.waiting(LOADING):
        from woqfx.generating import TextGenerator

        return TextGenerator(load_quantized(folder, backend), load_tokenizer(folder), **settings)


def load_quantized(folder: str, backend: Running) -> nn.Module:
    """A checkpoint, ready to run. If there is none, the error says how to make one."""
    from woqfx.api import load

    if not Path(folder).exists():
        raise CheckpointError(
            f"{folder} is not a folder with a checkpoint; make one first:\n"
            f"  woqfx quantize {shlex.quote(folder)} --out FOLDER"
        )
    _quieten()
    return load(folder, backend=backend.name, backend_options=backend.options)


def load_any(model: str, backend: Running) -> nn.Module:
    """A checkpoint, or a model that is not quantized."""
    from woqfx.loading import is_quantized
    from woqfx.original import load_original

    if is_quantized(Path(model)):
        return load_quantized(model, backend)
    _quieten()
    return load_original(model)


def load_tokenizer(model: str) -> Any:
    """The tokenizer in a model's folder or GGUF file, or on the Hub. Raises `SourceError`."""
    from woqfx.source.tokenizer import load_tokenizer as load

    _quieten()
    return load(model)


def _quieten() -> None:
    """Transformers' own bars and advice would break into what the command prints."""
    from transformers.utils import logging

    quiet: Any = logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
