"""A model as it was before quantization, to compare with."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from woqfx.config import adopt_generation
from woqfx.places import Places
from woqfx.skeleton import materialize
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
    places = Places(loaded, source.label)
    for name in source.tensors:
        places.put(name, source.read(name))
    materialize(loaded)
    adopt_generation(loaded, source.sidecars(), source.label)
    return loaded.eval()
