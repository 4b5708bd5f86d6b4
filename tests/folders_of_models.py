"""Model folders and checkpoints for tests."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from tiny_models import tiny_inputs, tiny_model

from woqfx.disk.checkpoint import Checkpoint
from woqfx.engine import write_checkpoint
from woqfx.planning import make_plan
from woqfx.request import Request
from woqfx.scheme import DEFAULT_DTYPE
from woqfx.source import FolderSource

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn


def saved(family: str, folder: Path, **changes: Any) -> Path:
    """A tiny model of `family`, saved by transformers into a folder below `folder`."""
    path = folder / "-".join([family, *(f"{key}={value}" for key, value in changes.items())])
    if not path.is_dir():
        tiny_model(family, **changes).save_pretrained(path)
    return path


def request(**changes: Any) -> Request:
    """A request with `woqfx.quantize`'s defaults."""
    return Request.read(**{"dtype": DEFAULT_DTYPE, **changes})


def write(
    source: Path, out: Path, *, overwrite: bool = False, shard_bytes: int = 4_000_000_000, **changes: Any
) -> Path:
    """Quantize the folder `source` into `out`."""
    opened = FolderSource(source)
    plan = make_plan(opened, request(**changes))
    plan.check()
    for _ in write_checkpoint(opened, plan, out, overwrite=overwrite, shard_bytes=shard_bytes):
        pass
    return out


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path there; a folder is there under its own name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "a folder"
        for path in sorted(folder.rglob("*"))
    }


def contents(folder: Path) -> dict[str, Tensor]:
    """What a checkpoint says the tensors are: quantized ones dequantized, the others as they are."""
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.read_weight(name).dequantize() for name in checkpoint.weights} | {
        name: checkpoint.read_kept(name) for name in checkpoint.kept
    }


def logits(model: nn.Module) -> Tensor:
    """The logits for a few tokens, the same ones each time."""
    with torch.no_grad():
        result: Tensor = model(**tiny_inputs(model)).logits
    return result
