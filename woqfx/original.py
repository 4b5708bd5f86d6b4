"""A model as it was before quantization, to compare with."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from woqfx.config import adopt_generation
from woqfx.loading import put
from woqfx.skeleton import materialize
from woqfx.source import open_source


def load_original(model: str | Path) -> nn.Module:
    """Load an unquantized folder, GGUF file or Hub model as it is, ready to run.

    The same tensors that `quantize` would read; a GGUF file is dequantized to float32. Raises `SourceError`.
    """
    source = open_source(model)
    loaded = copy.deepcopy(source.skeleton)
    for name in source.tensors:
        put(loaded, name, source.read(name), source.label)
    materialize(loaded)
    adopt_generation(loaded, source.sidecars(), source.label)
    return loaded.eval()
