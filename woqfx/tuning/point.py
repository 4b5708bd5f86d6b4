"""How far a tuning run has come, in a file: a run that was killed goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from woqfx.disk import durable
from woqfx.disk.tensorfile import TensorFile, layout, raw_bytes
from woqfx.errors import CheckpointError

_STATE, _BEST = "state.", "best."
_KEY = "woqfx"


@dataclass(frozen=True)
class Point:
    """What is known after `steps` steps.

    `before` is the divergence at the start and `after` the least that was found since, on sequences that are not
    learned from; `best` are the scales and vectors that gave it, as they are stored, by the name of their weight or
    their own. `state` is what `Learning.restore` takes.
    """

    steps: int
    before: float
    after: float
    best: Mapping[str, Tensor]
    state: Mapping[str, Tensor]

    def write(self, path: Path) -> None:
        """Put it into the file `path`, in place of what was there. Raises `OutputError`."""
        tensors = {_STATE + name: tensor for name, tensor in self.state.items()}
        tensors |= {_BEST + name: tensor for name, tensor in self.best.items()}
        parts = [raw_bytes(tensor.contiguous()) for tensor in tensors.values()]
        facts = {"steps": self.steps, "before": self.before, "after": self.after, "sha256": _digest(parts)}
        header = layout(
            {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}, {_KEY: json.dumps(facts)}
        ).header
        durable.write_file(path, b"".join([header, *parts]))

    @classmethod
    def read(cls, path: Path) -> Point:
        """What `write` put there. Raises `CheckpointError` if it is damaged."""
        with TensorFile(path, error=CheckpointError) as file:
            tensors = {name: file.read(name) for name in file.entries}
            facts: dict[str, Any] = json.loads(file.metadata.get(_KEY, "{}"))
        if facts.get("sha256") != _digest([raw_bytes(tensor) for tensor in tensors.values()]):
            raise CheckpointError(
                f"{path}, part of an unfinished run, is damaged; start afresh with overwrite=True (--overwrite)"
            )
        best, state = (
            {name.removeprefix(kind): one for name, one in tensors.items() if name.startswith(kind)}
            for kind in (_BEST, _STATE)
        )
        return cls(facts["steps"], facts["before"], facts["after"], best, state)


def _digest(parts: list[memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
