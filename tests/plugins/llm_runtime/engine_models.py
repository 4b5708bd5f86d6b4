"""Checkpoints of tiny models, on the native engine and as transformers' models with the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from folders_of_models import contents
from tiny_models import tiny_model

import woqfx
from woqfx.layers import find_layers

if TYPE_CHECKING:
    from pathlib import Path

#: Exact keys and values, and a head as it was kept: nothing is rounded that transformers does not round.
EXACT = {"kv": "fp32", "head": "keep"}


def checkpoint_of(folder: Path, family: str, changes: dict[str, Any] | None = None, **quantization: Any) -> Path:
    """A tiny model's checkpoint."""
    woqfx.quantize(tiny_model(family, **(changes or {})), out=folder, progress="none", **quantization)
    return folder


def on_engine(folder: Path, **options: Any) -> Any:
    """The checkpoint on the runtime; exact but for what `options` say."""
    return woqfx.load(folder, backend="llm_runtime", backend_options={**EXACT, **options})


def dense_twin(folder: Path, family: str, changes: dict[str, Any] | None = None) -> Any:
    """Transformers' model with the checkpoint's weights, dequantized."""
    twin = tiny_model(family, **(changes or {}))
    transposed = {layer.weight for layer in find_layers(twin) if layer.transposed}
    quantized = woqfx.disk.checkpoint.Checkpoint(folder).weights
    with torch.no_grad():
        for name, value in contents(folder).items():
            twin.get_parameter(name).copy_(value.T if name in transposed and name in quantized else value)
    return twin


def random_tokens(rows: int, length: int, vocab_size: int = 128, seed: int = 0) -> torch.Tensor:
    """Tokens that no special one is among."""
    return torch.randint(3, vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
