"""What a checkpoint holds, what runs it here, and how far an unfinished run is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from woqfx.backend import Support
from woqfx.cpu import this_cpu
from woqfx.disk.journal import Journal
from woqfx.disk.output import JOURNAL, MARKERS, WORK, items_of
from woqfx.errors import CheckpointError
from woqfx.format import StoredModel
from woqfx.loading import open_checkpoint
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme

_MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation of safetensors


@dataclass(frozen=True)
class WeightFacts:
    """One quantized weight: `nbytes` on disk, `error` |W - W'| / |W| if it is known, and what would run it here."""

    name: str
    scheme: Scheme
    shape: tuple[int, ...]
    nbytes: int
    error: float | None
    support: Support

    @property
    def weights(self) -> int:
        """How many weights it holds."""
        return prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Scales included."""
        return 8 * self.nbytes / self.weights


@dataclass(frozen=True)
class Inspection:
    """A checkpoint from its headers: nothing but sizes and the manifest is read.

    `nbytes` are those of all its files. `request` is what was asked for, empty if the format does not say. `notes` tell
    of single tensors, for instance of those that had to be dequantized.
    """

    path: Path
    backend: str
    weights: tuple[WeightFacts, ...]
    kept: int
    nbytes: int
    request: Mapping[str, Any]
    notes: Mapping[str, str]

    @cached_property
    def bits_per_weight(self) -> float:
        """The mean over the quantized weights, scales included."""
        return 8 * self.quantized_bytes / max(1, sum(weight.weights for weight in self.weights))

    @property
    def quantized_bytes(self) -> int:
        """Size of the quantized weights on disk."""
        return sum(weight.nbytes for weight in self.weights)

    def worst(self, count: int) -> list[WeightFacts]:
        """The weights of largest error, the worst first."""
        known = [weight for weight in self.weights if weight.error is not None]
        return sorted(known, key=lambda weight: -(weight.error or 0.0))[:count]

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return {
            "path": str(self.path),
            "finished": True,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "bytes": self.nbytes,
            "quantized_bytes": self.quantized_bytes,
            "kept_tensors": self.kept,
            "request": dict(self.request),
            "notes": dict(self.notes),
            "backend": self.backend,
            "weights": [
                {
                    "name": weight.name,
                    "scheme": weight.scheme.to_json(),
                    "shape": list(weight.shape),
                    "bits_per_weight": round(weight.bits_per_weight, 4),
                    "bytes": weight.nbytes,
                    "error": weight.error,
                    "runs": weight.support.ok,
                    "kernel": weight.support.kernel or None,
                    "reason": weight.support.reason,
                }
                for weight in self.weights
            ],
        }


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that was stopped: what it was asked, and what of it is safe on disk.

    `total_bytes` is that of the weight files that were begun; `files` counts all that there will be. `steps` are those
    that a tuning run has taken and kept; None for a run of another kind.
    """

    path: Path
    source: str
    request: Mapping[str, Any]
    tensors: int
    safe_bytes: int
    total_bytes: int
    files: int
    begun: int
    steps: int | None = None

    @property
    def expected_bytes(self) -> int:
        """What there will be; files that were not begun are taken to be as large as the others."""
        return self.total_bytes * self.files // max(1, self.begun)

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return {
            "path": str(self.path),
            "finished": False,
            "source": self.source,
            "request": dict(self.request),
            "tensors_done": self.tensors,
            "bytes_done": self.safe_bytes,
            "bytes_expected": self.expected_bytes,
            **({} if self.steps is None else {"steps_done": self.steps}),
        }


def inspect(path: str | Path, backend: str = "torch_cpu") -> Inspection | UnfinishedRun:
    """Look at a checkpoint, or at the unfinished run that a folder holds.

    Raises `CheckpointError` for what is neither, and `UnknownNameError` for a backend or dtype that is not installed.
    """
    path = Path(path)
    run = unfinished(path) if path.is_dir() else None
    if run is not None and not any((path / marker).is_file() for marker in MARKERS):
        return run
    stored = open_checkpoint(path)
    weights = _facts(stored, backend)
    size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]) if file.is_file())
    return Inspection(path, backend, weights, len(stored.kept), size, stored.request, stored.notes)


def _facts(stored: StoredModel, backend_name: str) -> tuple[WeightFacts, ...]:
    backend = registry().backend(backend_name)
    facts = []
    for name, weight in stored.weights.items():
        dtype = registry().dtype(weight.scheme.dtype)
        parts = QTensor.specs(dtype, weight.scheme, weight.shape, ordered=weight.ordered, offsets=weight.offsets)
        specs = parts.values()
        nbytes = sum(prod(shape) * kind.itemsize for kind, shape in specs)
        support = backend.supports(weight.scheme, dtype, weight.shape, this_cpu())
        facts.append(WeightFacts(name, weight.scheme, weight.shape, nbytes, stored.errors.get(name), support))
    return tuple(facts)


def unfinished(path: Path) -> UnfinishedRun | None:
    """The run that was stopped in this folder, if there is one. Raises `CheckpointError` if its journal is damaged."""
    work = path / WORK
    contents = Journal.peek(path / JOURNAL)
    if contents is None:
        return None
    items, request = items_of(contents.records), contents.run.get("request", {})
    if not isinstance(request, dict):
        raise CheckpointError(f"{path / JOURNAL} does not say what was asked for: choose another folder")
    steps = [record["steps"] for record in contents.records if "steps" in record]
    safe = {record["file"]: record["bytes"] for record in items}
    source = contents.run.get("source")
    name = str(source["name"]) if isinstance(source, dict) else "?"
    shards = sorted(work.glob("model*.safetensors"))
    numbered = [part for shard in shards if (part := shard.stem.rpartition("-of-")[2]).isdigit()]
    return UnfinishedRun(
        path=path,
        source=name,
        request=request,
        tensors=len(items),
        safe_bytes=sum(safe.values()),
        total_bytes=sum(_promised_bytes(shard) for shard in shards),
        files=int(numbered[0]) if numbered else len(shards),
        begun=len(shards),
        steps=max(steps, default=0) if "tuning" in request else None,
    )


def _promised_bytes(shard: Path) -> int:
    """The size that a half-written file will have, by its header; 0 if even that is not there."""
    try:
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, _MAX_HEADER)))
        ends = (int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__")
        return 8 + length + max(ends)
    except (OSError, ValueError, LookupError, TypeError):
        return 0
