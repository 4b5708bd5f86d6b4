"""How far a tuning run has come, in a file: a run that was killed goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from woqfx.disk import durable
from woqfx.disk.tensorfile import TensorFile, layout, raw_bytes
from woqfx.errors import CheckpointError

_STATE, _BEST = "state.", "best."
_FACTS, _DIGEST = "woqfx", "sha256"
_DAMAGED = "{}, part of an unfinished run, is damaged; start afresh with overwrite=True (--overwrite)"


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
        facts = json.dumps({"steps": self.steps, "before": self.before, "after": self.after})
        header = layout(
            {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()},
            {_FACTS: facts, _DIGEST: _digest(facts, tensors)},
        ).header
        durable.write_file(path, b"".join([header, *(raw_bytes(tensor.contiguous()) for tensor in tensors.values())]))

    @classmethod
    def read(cls, path: Path) -> Point:
        """What `write` put there. Raises `CheckpointError` if it is damaged, or cannot be read."""
        try:
            with TensorFile(path, error=CheckpointError) as file:
                tensors = {name: file.read(name) for name in file.entries}
                facts, digest = (file.metadata.get(key, "") for key in (_FACTS, _DIGEST))
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError):  # a device that fails says nothing of what is on it
                raise
            raise CheckpointError(_DAMAGED.format(path)) from error
        if digest != _digest(facts, tensors):
            raise CheckpointError(_DAMAGED.format(path))
        best, state = (
            {name.removeprefix(kind): one for name, one in tensors.items() if name.startswith(kind)}
            for kind in (_BEST, _STATE)
        )
        return cls(**json.loads(facts), best=best, state=state)


def _digest(facts: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(raw_bytes(tensor.contiguous()))
    return digest.hexdigest()
