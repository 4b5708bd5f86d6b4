"""A model as it was before quantization, to compare with."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from woqfx.config import adopt_generation
from woqfx.skeleton import materialize, put
from woqfx.source import ModuleSource, Source, open_source


def load_original(model: str | Path) -> nn.Module:
    """Load an unquantized folder, GGUF file or Hub model as it is, ready to run.

    The same tensors that `quantize` would read; a GGUF file is dequantized to float32. Raises `SourceError`.
    """
    return original_of(open_source(model))


def original_of(source: Source) -> nn.Module:
    """The float model of `source`, ready to run: a live module itself, as it is."""
    if isinstance(source, ModuleSource):
        return source.skeleton
    loaded = copy.deepcopy(source.skeleton)
    for name in source.tensors:
        put(loaded, name, source.read(name), source.label)
    materialize(loaded)
    adopt_generation(loaded, source.sidecars(), source.label)
    return loaded.eval()
