"""Checkpoints that were tampered with and signed again: sizes and hashes fit, so only the one fault is there."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import woqfx
from woqfx.disk.checkpoint import Checkpoint
from woqfx.errors import WoqfxError

MANIFEST = "woqfx.json"
SECONDS = 5.0
BYTES = 256 << 20


class Net(nn.Module):
    """What the checkpoints hold: weights of several schemes, and others that are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 24)
        self.plain = nn.Linear(24, 40)
        self.norm = nn.LayerNorm(40)
        self.zeros = nn.Linear(40, 24)
        self.doubled = nn.Linear(24, 8, bias=False)
        self.coarse = nn.Linear(24, 8, bias=False)


class Ternary(woqfx.Codebook):
    """A table that is shorter than its codes reach: 3 levels in 2 bits."""

    name = "ternary"
    bits = 2
    table = (-1.0, 0.0, 1.0)


class Plugin:
    """Provides `Ternary`."""

    @woqfx.hookimpl
    def woqfx_dtypes(self) -> list[woqfx.DType]:
        return [Ternary()]


RULES = [
    "plain=int8",
    "zeros=dtype:int4_clip,symmetric:false",
    "doubled=dtype:nf4,double_quant:true",
    "coarse=dtype:ternary",
]


@dataclass
class Forgery:
    """A copy of a good checkpoint, to be changed."""

    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.path / MANIFEST).read_bytes())

    def edit(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change the manifest."""
        manifest = self.manifest
        change(manifest)
        (self.path / MANIFEST).write_text(json.dumps(manifest))

    def sign(self, *names: str) -> None:
        """Have the manifest list these files as they are."""
        for name in names:
            data = (self.path / name).read_bytes()
            facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            self.edit(lambda manifest, name=name, facts=facts: manifest["files"].update({name: facts}))

    def rewrite(self, change: Callable[[dict[str, torch.Tensor]], Any], name: str = "model.safetensors") -> None:
        """Change the tensors of a file, and sign it."""
        from safetensors.torch import load_file, save_file

        tensors = load_file(self.path / name)
        change(tensors)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, self.path / name, {"format": "pt"})
        self.sign(name)

    def reheader(self, change: Callable[[dict[str, Any]], Any], name: str = "model.safetensors") -> None:
        """Change the header of a file and leave its data, and sign it."""
        data = (self.path / name).read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        changed = change(header)
        text = json.dumps(header if changed is None else changed).encode()
        (self.path / name).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        self.sign(name)

    def write(self, name: str, data: bytes | str, *, sign: bool = True) -> None:
        """Put a file there."""
        (self.path / name).write_bytes(data.encode() if isinstance(data, str) else data)
        if sign:
            self.sign(name)


def copy_of(checkpoint: Path, folder: Path) -> Forgery:
    """A forgery to be, in a new folder."""
    shutil.copytree(checkpoint, folder)
    return Forgery(folder)


def read_all(path: Path, model: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """Load a checkpoint as a user would, hashes compared, and return every tensor of the model, in float."""
    Checkpoint(path).verify()
    loaded = woqfx.load(path, model=model)
    found = dict(loaded.named_parameters())
    for name, module in loaded.named_modules():
        if isinstance(module, woqfx.PackedWeight):
            found[name] = module.dequantize()
    return found


def refused(path: Path, match: str, model: nn.Module | None = None) -> str:
    """Loading `path` is refused with a message that matches, in bounded time and memory."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WoqfxError, match=match) as caught:
        read_all(path, model)
    assert time.process_time() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    message = str(caught.value)
    assert str(path) in message, "the message must name the file"
    assert len(message) < 4000, "a hostile file must not become a hostile message"
    return message
