"""woqfx's own checkpoint format, and its reader. `docs/checkpoint.md` describes the format.

A folder is a checkpoint when it holds the manifest, `woqfx.json`, which is written last. Quantized weights
are the tensors `<parameter>.codes`, `.scales` and so on (`QTensor.tensors`) of ordinary safetensors
files; whatever was kept is there under its own name. The reader treats every byte as hostile.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import woqfx
from woqfx.errors import CheckpointError, SourceError, UnfinishedError, WoqfxError
from woqfx.format import StoredModel, StoredWeight
from woqfx.journal import Journal
from woqfx.plugins import registry
from woqfx.provenance import Provenance
from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme
from woqfx.source.files import MAX_CONFIG, MAX_INDEX, ModelFolder
from woqfx.source.metadata import MAX_SIDECAR
from woqfx.tensorfile import TensorFile

MANIFEST = "woqfx.json"
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
#: Where an unfinished run keeps its work, inside the output folder.
WORK = "woqfx-unfinished"
JOURNAL = "journal.jsonl"
VERSION = 1

_FLOAT_DTYPES: Mapping[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class Checkpoint(StoredModel):
    """An opened checkpoint: headers and manifest are read and checked, weights when asked for.

    Raises `UnfinishedError` for the folder of a run that was stopped, `CheckpointError` for what is not a
    checkpoint, is damaged, or contradicts itself.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.label = str(path)
        try:
            self._open()
        except SourceError as error:
            raise CheckpointError(str(error)) from error

    def _open(self) -> None:
        self._folder = ModelFolder(self.path)
        manifest = self._folder.read_json(MANIFEST, MAX_INDEX)
        if manifest is None:
            raise _no_manifest(self.path)
        self.manifest = manifest
        if manifest.get("woqfx") != VERSION:
            raise self._bad(f"format version {manifest.get('woqfx')!r}, where this woqfx reads {VERSION}")
        self._files = self._open_files()
        self._places = {name: file for file in self._files.values() for name in file.entries}
        if len(self._places) < sum(len(file.entries) for file in self._files.values()):
            raise self._bad("two files that hold a tensor of the same name")
        self._weights = self._read_weights()

    def _bad(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path / MANIFEST} cannot be used: it has {what}")

    def _object(self, key: str) -> dict[str, Any]:
        value = self.manifest.get(key)
        if not isinstance(value, dict):
            raise self._bad(f"{type(value).__name__} where {key!r} should be an object")
        return value

    def _open_files(self) -> dict[str, TensorFile]:
        files: dict[str, TensorFile] = {}
        for name, facts in self._object("files").items():
            path = self._folder.find(name)
            if path is None:
                raise CheckpointError(
                    f"{self.path / name} is missing, which {MANIFEST} lists: fetch the checkpoint again"
                )
            size = facts.get("bytes") if isinstance(facts, dict) else None
            if path.stat().st_size != size:
                raise CheckpointError(f"{path} has {path.stat().st_size} bytes, where {MANIFEST} says {size!r}")
            if name.endswith(".safetensors"):
                files[name] = TensorFile(path, error=CheckpointError)
        return files

    def _read_weights(self) -> dict[str, StoredWeight]:
        listed = self.manifest.get("schemes")
        try:
            schemes = [Scheme.from_json(scheme) for scheme in listed or ()]
            weights = {}
            for name, facts in self._object("weights").items():
                shape = tuple(facts["shape"])
                if len(shape) < 2 or any(type(size) is not int or size < 1 for size in shape):
                    raise self._bad(f"shape {list(shape)!r} for {name}")
                if type(facts["scheme"]) is not int or facts["scheme"] < 0:
                    raise self._bad(f"scheme {facts['scheme']!r} for {name}")
                weights[name] = StoredWeight(schemes[facts["scheme"]], shape, _FLOAT_DTYPES[facts["dtype"]])
        except (TypeError, KeyError, IndexError, AttributeError, WoqfxError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise self._bad(f"weights that cannot be read ({type(error).__name__}: {error})") from error
        for name, weight in weights.items():
            self._check_parts(name, weight)
        return weights

    def _check_parts(self, name: str, weight: StoredWeight) -> None:
        dtype = registry().dtype(weight.scheme.dtype)
        ordered = f"{name}.order" in self._places
        for suffix, (kind, shape) in QTensor.specs(dtype, weight.scheme, weight.shape, ordered=ordered).items():
            file = self._places.get(f"{name}.{suffix}")
            if file is None:
                raise CheckpointError(f"{self.path} lacks the tensor {name}.{suffix}")
            entry = file.entries[f"{name}.{suffix}"]
            if (entry.dtype, entry.shape) != (kind, shape):
                raise CheckpointError(
                    f"{file.path}: {name}.{suffix} is {entry.dtype} {list(entry.shape)}, "
                    f"where its scheme needs {kind} {list(shape)}"
                )

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """See `StoredModel.config`."""
        try:
            config = self._folder.read_json(CONFIG, MAX_CONFIG)
        except SourceError as error:
            raise CheckpointError(str(error)) from error
        return (
            None
            if config is None
            else {k: v for k, v in config.items() if k not in ("quantization_config", "auto_map")}
        )

    @property
    def weights(self) -> Mapping[str, StoredWeight]:
        """See `StoredModel.weights`."""
        return self._weights

    @cached_property
    def _parts(self) -> dict[str, dict[str, str]]:
        """The stored names of each weight's parts, by suffix."""
        parts: dict[str, dict[str, str]] = {name: {} for name in self._weights}
        for stored in self._places:
            name, _, suffix = stored.rpartition(".")
            if name in parts:
                parts[name][suffix] = stored
        return parts

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """See `StoredModel.kept`."""
        taken = {stored for parts in self._parts.values() for stored in parts.values()}
        return tuple(name for name in self._places if name not in taken)

    @property
    def aliases(self) -> Mapping[str, str]:
        """See `StoredModel.aliases`."""
        return self._object("aliases")

    @property
    def errors(self) -> Mapping[str, float]:
        """The relative error |W - W'| / |W| of each quantized weight, as measured when it was made."""
        return {name: facts.get("error") for name, facts in self._object("weights").items()}

    @property
    def request(self) -> Mapping[str, Any]:
        """What was asked for when it was made: algorithm, options, scheme, rules."""
        return self._object("request")

    def carried(self) -> dict[str, bytes]:
        """The files that were carried over: tokenizer, generation config."""
        ours = {CONFIG, INDEX, *self._files}
        names = [name for name in self._object("files") if name not in ours]
        return {name: self._folder.read(name, MAX_SIDECAR) or b"" for name in names}

    def read_weight(self, name: str) -> QTensor:
        """See `StoredModel.read_weight`."""
        weight = self._weights[name]
        parts = {suffix: self._places[stored].read(stored) for suffix, stored in self._parts[name].items()}
        dtype = registry().dtype(weight.scheme.dtype)
        return QTensor.from_tensors(dtype, weight.scheme, weight.shape, parts, name=f"{self.path}: {name}")

    def read_kept(self, name: str) -> Tensor:
        """See `StoredModel.read_kept`."""
        return self._places[name].read(name)

    def provenance(self) -> Provenance:
        """What the loaded model shall remember."""
        return Provenance(self.request, self.errors, self.config, self.aliases, self.carried)

    def verify(self) -> None:
        """Compare every file with the SHA-256 in the manifest. Reads all of them."""
        for name, facts in self._object("files").items():
            digest = hashlib.sha256()
            with (self.path / name).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != facts.get("sha256"):
                raise CheckpointError(f"{self.path / name} is not as {MANIFEST} describes it: fetch or make it again")


def small_files(
    config: Mapping[str, Any] | None, request: Mapping[str, Any], sidecars: Mapping[str, bytes]
) -> dict[str, bytes]:
    """The files beside weights and manifest: what was carried over, and the config with its quantization."""
    files = dict(sidecars)
    if config is not None:
        quantization = {"quant_method": "woqfx", "format": VERSION, "manifest": MANIFEST, **request}
        files[CONFIG] = as_json({**config, "quantization_config": quantization})
    return files


def manifest(
    request: Mapping[str, Any],
    weights: Mapping[str, StoredWeight],
    errors: Mapping[str, float | None],
    aliases: Mapping[str, str],
    files: Mapping[str, Any],
) -> bytes:
    """The manifest. It holds no time, path or machine: the same model and request give the same bytes."""
    schemes = list(dict.fromkeys(weight.scheme for _, weight in sorted(weights.items())))
    names = {dtype: name for name, dtype in _FLOAT_DTYPES.items()}
    return as_json(
        {
            "woqfx": VERSION,
            "generator": f"woqfx {woqfx.__version__}",
            "request": dict(request),
            "schemes": [scheme.to_json() for scheme in schemes],
            "weights": {
                name: {
                    "scheme": schemes.index(weights[name].scheme),
                    "shape": list(weights[name].shape),
                    "dtype": names[weights[name].float_dtype],
                    "error": errors[name],
                }
                for name in sorted(weights, key=natural)
            },
            "aliases": dict(sorted(aliases.items())),
            "files": dict(files),
        }
    )


def as_json(value: Any) -> bytes:
    """The one way in which small files are written, so that the same content gives the same bytes."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts dotted names with their numbers as numbers: `layers.2` before `layers.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a folder that holds a woqfx checkpoint, or an unfinished one."""
    return (path / MANIFEST).is_file() or (path / WORK).is_dir()


def _no_manifest(path: Path) -> CheckpointError:
    if (path / WORK).is_dir():
        found = Journal.peek(path / WORK / JOURNAL)
        count = len(found.records) if found else 0
        return UnfinishedError(
            f"{path} holds an unfinished run ({count} tensors are done): run the same woqfx quantize again to go on, "
            f"or pass overwrite=True (--overwrite) to start afresh"
        )
    return CheckpointError(f"{path} has no {MANIFEST}: it is not a woqfx checkpoint (make one with woqfx quantize)")
