"""A place that may hold someone else's checkpoint, looked at through headers alone."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from woqfx.disk.tensorfile import TensorFile
from woqfx.errors import CheckpointError, SourceError
from woqfx.floats import FLOAT_DTYPES
from woqfx.source.base import TensorInfo
from woqfx.source.files import MAX_CONFIG, MAX_INDEX, ModelFolder
from woqfx.source.metadata import GENERATION_CONFIG, MAX_SIDECAR, folder_sidecars, prevailing_dtype

_CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class ModelFiles:
    """A folder with `config.json` and safetensors, or a single file: what a `Format` is asked about.

    Nothing is read before it is asked for, and then headers and small files only. A file may come from anyone: names
    are plain and stay inside the folder, sizes are checked before memory is taken, a key that stands twice is an error.
    Everything that is wrong raises `CheckpointError`, which names the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.label = str(path)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder; otherwise it is a file, or nothing."""
        return self.path.is_dir()

    @cached_property
    def _folder(self) -> ModelFolder:
        with of_checkpoint():
            return ModelFolder(self.path)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """`config.json` as it stands there; empty if there is none."""
        return (self.json(_CONFIG) or {}) if self.is_folder else {}

    @cached_property
    def quantization(self) -> Mapping[str, Any]:
        """What the config says of its quantization; empty if nothing.

        From `config.json` (`quantization_config`, or `compression_config`), or else from the files that AutoAWQ,
        AutoGPTQ and ITREX write beside it.
        """
        for key in ("quantization_config", "compression_config"):
            found = self.config.get(key)
            if isinstance(found, dict) and found:
                return found
            if found:
                raise CheckpointError(f"{self.path / _CONFIG}: {key} is {type(found).__name__}, not an object")
        for name in ("quantize_config.json", "quant_config.json", "quantization_config.json"):
            if self.is_folder and (found := self.json(name)):
                return found
        return {}

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON object in the folder; None if there is no such file."""
        with of_checkpoint():
            return self._folder.read_json(name, MAX_CONFIG)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Shape and type of every tensor in the folder's safetensors, by stored name; empty if there are none."""
        return {
            name: TensorInfo(file.entries[name].shape, file.entries[name].dtype) for name, file in self._holders.items()
        }

    @cached_property
    def float_dtype(self) -> torch.dtype:
        """The type that quantized weights had before: that of the config, or else that of most kept numbers."""
        named = self.config.get("dtype", self.config.get("torch_dtype"))
        if isinstance(named, str) and named in FLOAT_DTYPES:
            return FLOAT_DTYPES[named]
        return prevailing_dtype(self.tensors.values())

    def read(self, name: str) -> Tensor:
        """A tensor of `tensors`, in memory of its own. Threads may read at once."""
        return self._holders[name].read(name)

    def where(self, name: str) -> str:
        """A tensor of `tensors` as messages name it: its file and its name."""
        return f"{self._holders[name].path}: {name[:200]}"

    @cached_property
    def _holders(self) -> dict[str, TensorFile]:
        """The file that holds each tensor. The single file goes before the index, as in transformers."""
        if not self.is_folder:
            return {}
        with ExitStack() as opened:
            holders: dict[str, TensorFile] = {}
            placed = self._placed()
            for file_name in self._weight_files(placed):
                file = opened.enter_context(self._open(file_name))
                for name in file.entries:
                    if name in holders:
                        raise CheckpointError(f"tensor {name[:200]} is in {holders[name].path} and in {file.path}")
                    holders[name] = file
            for name, file_name in placed.items():
                if name not in holders or holders[name].path.name != file_name:
                    raise CheckpointError(f"{self.path / file_name} lacks {name[:200]}, which {_INDEX} puts there")
            weakref.finalize(self, opened.pop_all().close)
            return holders

    def _placed(self) -> Mapping[str, str]:
        """The index: tensor to file name. Empty if it is not needed."""
        with of_checkpoint():
            if self._folder.find(_SINGLE):
                return {}
            placed = (self._folder.read_json(_INDEX, MAX_INDEX) or {}).get("weight_map", {})
        if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
            raise CheckpointError(f"{self.path / _INDEX} has no weight_map from tensor to file name; fetch it again")
        return placed

    def _weight_files(self, placed: Mapping[str, str]) -> list[str]:
        if placed:
            return sorted(set(placed.values()))
        with of_checkpoint():
            if self._folder.find(_SINGLE):
                return [_SINGLE]
        # AutoGPTQ named its file after the settings ("gptq_model-4bit-128g.safetensors"), llm-awq as it liked.
        return sorted(path.name for path in self.path.glob("*.safetensors"))[:1]

    def _open(self, name: str) -> TensorFile:
        with of_checkpoint():
            path = self._folder.find(name)
        if path is None:
            raise CheckpointError(f"{self.path / name} is missing, which {_INDEX} names: fetch it again")
        return TensorFile(path, error=CheckpointError)

    def fingerprint(self) -> str:
        """A digest that changes whenever a tensor may have changed: names, sizes, times and headers of the files."""
        digest = hashlib.sha256(json.dumps([self.config, self.quantization], sort_keys=True).encode())
        with of_checkpoint():
            for file in dict.fromkeys(self._holders.values()):
                status = file.path.stat()
                digest.update(repr((file.path.name, status.st_size, status.st_mtime_ns, file.header_digest)).encode())
        return digest.hexdigest()

    def sidecars(self) -> dict[str, bytes]:
        """The files to carry over as they are: tokenizer, chat template, generation config."""
        with of_checkpoint():
            files = folder_sidecars(self._folder)
            generation = self._folder.read(GENERATION_CONFIG, MAX_SIDECAR)
        return files if generation is None else files | {GENERATION_CONFIG: generation}


@contextmanager
def of_checkpoint() -> Iterator[None]:
    """Errors of reading a model's folder are, here, errors of a checkpoint."""
    try:
        yield
    except (SourceError, OSError) as error:
        raise CheckpointError(str(error)) from error
