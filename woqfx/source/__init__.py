"""Models to quantize: live modules, folders, GGUF files and models on the Hugging Face Hub, all read alike."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from torch import nn

from woqfx.errors import SourceError
from woqfx.source.base import Source, TensorInfo
from woqfx.source.folder import FolderSource
from woqfx.source.gguf import GGUFSource
from woqfx.source.hub import resolve
from woqfx.source.module import ModuleSource

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FolderSource", "GGUFSource", "ModuleSource", "Source", "TensorInfo", "open_source"]


def open_source(model: nn.Module | str | Path) -> Source:
    """Open a model: a live module, a folder with safetensors, a `.gguf` file, or the name of a model on the Hub.

    Only headers are read. Raises `SourceError`, which says what was found and what would work, for anything else.
    """
    if isinstance(model, nn.Module):
        return ModuleSource(model)
    if not isinstance(model, str | PathLike):
        raise SourceError(
            f"a model is a module, a folder, a .gguf file or a name on the Hub, and not {model!r}: give one of these"
        )
    path = resolve(model)
    return FolderSource(path) if path.is_dir() else GGUFSource(path)
