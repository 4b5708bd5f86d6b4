"""woqfx's own checkpoint format: its reader. `docs/checkpoint.md` describes the format.

Quantized weights are the tensors `<parameter>.codes`, `.scales` and so on (`QTensor.tensors`) of ordinary safetensors
files; whatever was kept is there under its own name. The manifest says which is which. The reader treats every byte as
hostile.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from woqfx.config import harmless
from woqfx.disk.journal import Journal
from woqfx.disk.manifest import CONFIG, INDEX, MANIFEST, MAX_MANIFEST, VERSION, Manifest, as_json, short
from woqfx.disk.output import JOURNAL, items_of
from woqfx.disk.tensorfile import TensorFile
from woqfx.errors import CheckpointError, SourceError, UnfinishedError, UnknownNameError
from woqfx.format import StoredModel, StoredWeight
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.source.base import TensorInfo
from woqfx.source.files import MAX_CONFIG, ModelFolder
from woqfx.source.metadata import MAX_SIDECAR

#: What config.json gives transformers as the name of the weight file. A transformers that has not heard of woqfx would
#: warn, load nothing and initialise weights at random; so it stops at a file that is not there, whose name says why.
TRANSFORMERS_WEIGHTS = "import woqfx.transformers to load this woqfx checkpoint.safetensors"


class Checkpoint(StoredModel):
    """An opened checkpoint: headers and manifest are read and checked, weights when asked for.

    Raises `UnfinishedError` for the folder of a run that was stopped, `CheckpointError` for what is not a
    checkpoint, is damaged, or contradicts itself.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.label = str(path)
        with _of_checkpoint(), ExitStack() as opened:
            self._folder = ModelFolder(self.path)
            data = self._folder.read(MANIFEST, MAX_MANIFEST)
            if data is None:
                raise _no_manifest(self.path)
            self.manifest = Manifest.parse(data, self.path / MANIFEST)
            self._files = [opened.enter_context(file) for file in self._open_files()]
            self._places = self._find_tensors()
            for name, weight in self.manifest.weights.items():
                self._check_parts(name, weight)
            self._check_aliases()
            weakref.finalize(self, opened.pop_all().close)

    def _open_files(self) -> Iterator[TensorFile]:
        for name, facts in self.manifest.files.items():
            path = self._folder.find(name)
            if path is None:
                raise CheckpointError(
                    f"{self.path / name} is missing, which {MANIFEST} lists: fetch the checkpoint again"
                )
            size = path.stat().st_size
            if size != facts.nbytes:
                raise CheckpointError(
                    f"{path} has {size} bytes, where {MANIFEST} says {facts.nbytes}: fetch the checkpoint again"
                )
            if name.endswith(".safetensors"):
                yield TensorFile(path, error=CheckpointError)

    def _find_tensors(self) -> dict[str, TensorFile]:
        places: dict[str, TensorFile] = {}
        for file in self._files:
            for name in file.entries:
                if name in places:
                    raise CheckpointError(f"tensor {short(name)} is in {places[name].path} and in {file.path}")
                places[name] = file
        return places

    def _check_parts(self, name: str, weight: StoredWeight) -> None:
        where = f"{self.path / MANIFEST}: {short(name)}"
        try:
            dtype = registry().dtype(weight.scheme.dtype)
        except UnknownNameError as error:
            raise CheckpointError(f"{where}: {error}") from error
        if not weight.scheme.symmetric and not dtype.has_asymmetric:
            raise CheckpointError(f"{where} has zero points, and {dtype.name} has no asymmetric form")
        found = self._parts[name]
        specs = QTensor.specs(dtype, weight.scheme, weight.shape, ordered="order" in found, offsets="offsets" in found)
        if set(found) != set(specs):
            raise CheckpointError(
                f"{where}: the files hold its {sorted(found)}, where its scheme needs {sorted(specs)}"
            )
        for suffix, (kind, shape) in specs.items():
            stored = found[suffix]
            file = self._places[stored]
            entry = file.entries[stored]
            if (entry.dtype, entry.shape) != (kind, shape):
                raise CheckpointError(
                    f"{file.path}: {short(stored)} is {entry.dtype} {short(entry.shape)}, "
                    f"where its scheme needs {kind} {short(shape)}"
                )

    def _check_aliases(self) -> None:
        held = {*self.weights, *self.kept}
        for alias, name in self.aliases.items():
            if name not in held or alias in held:
                raise CheckpointError(
                    f"{self.path / MANIFEST} ties {short(alias)} to {short(name)}: the files must hold the second alone"
                )

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """See `StoredModel.config`. What would have transformers run or fetch code is left out."""
        if CONFIG not in self.manifest.files:
            return None
        with _of_checkpoint():
            config = self._folder.read_json(CONFIG, MAX_CONFIG)
        return None if config is None else harmless(config)

    @cached_property
    def weights(self) -> Mapping[str, StoredWeight]:
        """See `StoredModel.weights`."""
        return {
            name: replace(weight, ordered="order" in self._parts[name], offsets="offsets" in self._parts[name])
            for name, weight in self.manifest.weights.items()
        }

    @cached_property
    def _parts(self) -> dict[str, dict[str, str]]:
        """The stored names of each weight's parts, by suffix."""
        parts: dict[str, dict[str, str]] = {name: {} for name in self.manifest.weights}
        for stored in self._places:
            name, _, suffix = stored.rpartition(".")
            if name in parts:
                parts[name][suffix] = stored
        return parts

    @cached_property
    def kept(self) -> Mapping[str, TensorInfo]:
        """See `StoredModel.kept`."""
        taken = {stored for parts in self._parts.values() for stored in parts.values()}
        entries = {name: file.entries[name] for name, file in self._places.items() if name not in taken}
        return {name: TensorInfo(entry.shape, entry.dtype) for name, entry in entries.items()}

    @property
    def aliases(self) -> Mapping[str, str]:
        """See `StoredModel.aliases`."""
        return self.manifest.aliases

    @property
    def errors(self) -> Mapping[str, float | None]:
        """See `StoredModel.errors`."""
        return self.manifest.errors

    @property
    def request(self) -> Mapping[str, Any]:
        """See `StoredModel.request`."""
        return self.manifest.request

    @property
    def nbytes(self) -> int:
        """The size of all files but the manifest."""
        return sum(facts.nbytes for facts in self.manifest.files.values())

    def fingerprint(self) -> str:
        """See `StoredModel.fingerprint`: the manifest, which has the SHA-256 of every file, and sizes and times."""
        digest = hashlib.sha256(self.manifest.to_bytes())
        with _of_checkpoint():
            for file in self._files:
                status = file.path.stat()
                digest.update(repr((file.path.name, status.st_size, status.st_mtime_ns)).encode())
        return digest.hexdigest()

    def sidecars(self) -> dict[str, bytes]:
        """See `StoredModel.sidecars`."""
        names = [n for n in self.manifest.files if n not in (CONFIG, INDEX) and not n.endswith(".safetensors")]
        with _of_checkpoint():
            found = {name: self._folder.read(name, MAX_SIDECAR) for name in names}
        return {name: data for name, data in found.items() if data is not None}

    def prefetch(self) -> None:
        """See `StoredModel.prefetch`."""
        for file in self._files[:1]:
            file.prefetch()

    def read_weight(self, name: str) -> QTensor:
        """See `StoredModel.read_weight`."""
        weight = self.weights[name]
        parts = {suffix: self._places[stored].read(stored) for suffix, stored in self._parts[name].items()}
        dtype = registry().dtype(weight.scheme.dtype)
        return QTensor.from_tensors(dtype, weight.scheme, weight.shape, parts, name=f"{self.path}: {name}")

    def read_kept(self, name: str) -> Tensor:
        """See `StoredModel.read_kept`."""
        return self._places[name].read(name)

    def verify(self) -> None:
        """Compare every file with the SHA-256 in the manifest. Reads all of them."""
        for name, facts in self.manifest.files.items():
            path = self.path / name
            digest = hashlib.sha256()
            with _of_checkpoint(), path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != facts.sha256:
                raise CheckpointError(f"{path} is not as {MANIFEST} describes it: fetch or make it again")


@contextmanager
def _of_checkpoint() -> Iterator[None]:
    """Errors of reading a model's folder are, here, errors of a checkpoint."""
    try:
        yield
    except (SourceError, OSError) as error:
        raise CheckpointError(str(error)) from error


def small_files(
    config: Mapping[str, Any] | None, request: Mapping[str, Any], sidecars: Mapping[str, bytes]
) -> dict[str, bytes]:
    """The files beside weights and manifest: what was carried over, and the config with its quantization."""
    files = dict(sidecars)
    if config is not None:
        quantization = {"quant_method": "woqfx", "format": VERSION, "manifest": MANIFEST, **request}
        told = {**config, "quantization_config": quantization, "transformers_weights": TRANSFORMERS_WEIGHTS}
        files[CONFIG] = as_json(told, sort_keys=True)
    return files


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a folder that holds a woqfx checkpoint, or an unfinished one."""
    return (path / MANIFEST).is_file() or (path / JOURNAL).is_file()


def _no_manifest(path: Path) -> CheckpointError:
    if (path / JOURNAL).is_file():
        found = Journal.peek(path / JOURNAL)
        count = len(items_of(found.records)) if found else 0
        return UnfinishedError(
            f"{path} holds an unfinished run ({count} tensors are done): run the same command again to go on, "
            f"or pass overwrite=True (--overwrite) to start afresh"
        )
    return CheckpointError(f"{path} has no {MANIFEST}: it is not a woqfx checkpoint (make one with woqfx quantize)")
