"""A folder of safetensors as a source."""

from __future__ import annotations

import hashlib
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from woqfx.disk.tensorfile import TensorFile
from woqfx.errors import SourceError
from woqfx.skeleton import build_skeleton, untie_head
from woqfx.source.base import TensorInfo
from woqfx.source.conversion import Conversion
from woqfx.source.files import MAX_CONFIG, MAX_INDEX, ModelFolder, parse_object
from woqfx.source.metadata import GENERATION_CONFIG, folder_sidecars, generation_sidecar, prevailing_dtype
from woqfx.source.stored import StoredSource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from transformers import PreTrainedConfig

_CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class FolderSource(StoredSource):
    """A folder with `config.json` and `model.safetensors`, or the shards that `model.safetensors.index.json` names.

    Construction reads headers only. Raises `SourceError` for anything but the unquantized model of an
    architecture that transformers knows, complete and in the shapes that its config gives. `config` stands in for the
    folder's own, for who has changed it after loading.
    """

    def __init__(self, path: str | Path, config: PreTrainedConfig | None = None) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self._folder = ModelFolder(path)
        self._config_bytes = _config_bytes(self._folder)
        said = parse_object(self._config_bytes, self._folder.path / _CONFIG)
        if config is None:
            config = _load_config(self._folder, said)
        with ExitStack() as opened:
            self._files = {name: opened.enter_context(TensorFile(file)) for name, file in _shards(self._folder).items()}
            self._holders = _holders(self._folder, self._files)
            stored = {
                name: TensorInfo(file.entries[name].shape, file.entries[name].dtype)
                for name, file in self._holders.items()
            }
            _check_size(self._folder, config, len(stored))
            if config.dtype is None:
                config.dtype = prevailing_dtype(stored.values())
            skeleton = build_skeleton(config)
            untie_head(skeleton, said, stored)
            self._conversion = Conversion(skeleton, get_model_conversion_mapping(skeleton), stored)
            super().__init__(skeleton, str(self._folder.path), self._conversion.tensors)
            weakref.finalize(self, opened.pop_all().close)

    @property
    def unexpected(self) -> tuple[str, ...]:
        """As in `Source`."""
        return self._conversion.unexpected

    def fetch(self, name: str) -> torch.Tensor:
        """As in `StoredSource`."""
        return self._conversion.build(name, lambda stored: self._holders[stored].read(stored))

    def fingerprint(self) -> str:
        """As in `Source`: names, sizes, times and headers of the files, and `config.json`."""
        digest = hashlib.sha256(self._config_bytes)
        for name, file in sorted(self._files.items()):
            try:
                status = file.path.stat()
            except OSError as error:
                raise SourceError(f"{file.path} has vanished: {error.strerror}") from error
            digest.update(repr((name, status.st_size, status.st_mtime_ns, file.header_digest)).encode())
        return digest.hexdigest()

    def sidecars(self) -> Mapping[str, bytes]:
        """As in `Source`."""
        files = folder_sidecars(self._folder)
        if self.skeleton.can_generate():
            files |= self._generation()
        return files

    def _generation(self) -> dict[str, bytes]:
        """What `from_pretrained` gives the model: the file's settings, or else those of older configs."""
        from transformers import GenerationConfig

        name = GENERATION_CONFIG
        values = self._folder.read_json(name, MAX_CONFIG)
        origin: dict[str, Any] = {}
        if values is None:
            name = _CONFIG
            values = parse_object(self._config_bytes, self._folder.path / name)
            origin = {"_from_model_config": True}
        try:
            return generation_sidecar(GenerationConfig.from_dict(values, **origin))
        except Exception as error:  # values from a file, checked by transformers
            raise SourceError(f"{self._folder.path / name} is not a valid generation config: {error}") from error


def _config_bytes(folder: ModelFolder) -> bytes:
    data = folder.read(_CONFIG, MAX_CONFIG)
    if data is not None:
        return data
    hint = "give the folder of the model itself"
    if folder.find("adapter_config.json"):
        hint = "this is an adapter: merge it into its base model (peft: merge_and_unload) and save that"
    elif ggufs := sorted(folder.path.glob("*.gguf")):
        hint = f"give the GGUF file itself, for instance {ggufs[0]}"
    raise SourceError(f"{folder.path} has no config.json; {hint}")


def _load_config(folder: ModelFolder, values: dict[str, Any]) -> PreTrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig

    path = folder.path / _CONFIG
    quantization = values.get("quantization_config") or values.get("compression_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise SourceError(
            f"{folder.path} is quantized already (quant_method {method!r} in config.json): give the unquantized "
            "original here; what is quantized is run with woqfx.load"
        )
    model_type = values.get("model_type")
    if not isinstance(model_type, str):
        raise SourceError(f"{path} names no model_type (found {model_type!r}); without it the model cannot be built")
    if model_type not in CONFIG_MAPPING:
        import transformers

        raise SourceError(
            f"{path}: transformers {transformers.__version__} has no model_type {model_type!r}, and code from the "
            "folder is not run; use another version of transformers, or load the model yourself and pass the module"
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # values from a file, checked by any of some hundred config classes
        raise SourceError(f"{path} is not a valid config of a {model_type}: {error}") from error
    return config


def _shards(folder: ModelFolder) -> dict[str, Path]:
    """The weight files by name. As in transformers, the single file goes before the index."""
    if single := folder.find(_SINGLE):
        return {_SINGLE: single}
    names = sorted(set(_weight_map(folder).values()))
    if not names:
        raise SourceError(_no_weights(folder))
    found = {name: folder.find(name) for name in names}
    absent = [name for name, file in found.items() if file is None]
    if absent:
        raise SourceError(
            f"{folder.path} lacks {len(absent)} of the {len(names)} files that {_INDEX} names: "
            f"{', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}; fetch them again"
        )
    return {name: file for name, file in found.items() if file is not None}


def _weight_map(folder: ModelFolder) -> dict[str, str]:
    """Stored name to file name, from the index; empty if there is no index."""
    index = folder.read_json(_INDEX, MAX_INDEX)
    if index is None:
        return {}
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise SourceError(f"{folder.path / _INDEX} has no weight_map from tensor to file name; fetch it again")
    return weight_map


def _no_weights(folder: ModelFolder) -> str:
    if any((folder.path / name).exists() for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")):
        return (
            f"{folder.path} holds pickled weights (pytorch_model.bin), which can run code when they are read. If you "
            "trust them, convert them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    if folder.find("adapter_model.safetensors"):
        return f"{folder.path} holds an adapter; merge it into its base model (peft: merge_and_unload) and save that"
    others = sorted(file.name for file in folder.path.glob("*.safetensors"))
    found = f" (found {', '.join(others[:3])})" if others else ""
    return f"{folder.path} holds neither {_SINGLE} nor {_INDEX}{found}; give the folder of a model in safetensors"


def _holders(folder: ModelFolder, files: Mapping[str, TensorFile]) -> dict[str, TensorFile]:
    """The file that holds each stored tensor."""
    holders: dict[str, TensorFile] = {}
    for file in files.values():
        for name in file.entries:
            if name in holders:
                raise SourceError(f"tensor {name} is in {holders[name].path} and in {file.path}; remove one of them")
            holders[name] = file
    if _SINGLE not in files:
        for name, file_name in _weight_map(folder).items():
            if name not in files[file_name].entries:
                raise SourceError(f"{folder.path / file_name} lacks {name}, which {_INDEX} puts there; fetch it again")
    return holders


def _check_size(folder: ModelFolder, config: PreTrainedConfig, stored: int) -> None:
    """Refuse to build a skeleton of more layers than there are tensors to fill it."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > stored:
        raise SourceError(
            f"{folder.path / _CONFIG} asks for {layers} layers, but the files hold only {stored} tensors; "
            "files are missing, or config.json belongs to another model"
        )
