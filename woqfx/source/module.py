"""A live module as a source."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn

from woqfx.backend import PackedWeight
from woqfx.errors import SourceError
from woqfx.floats import FLOAT_DTYPES
from woqfx.skeleton import named_state, tied_aliases, told_untied
from woqfx.source.base import Source, TensorInfo
from woqfx.source.files import ModelFolder
from woqfx.source.hub import cached_snapshot
from woqfx.source.metadata import folder_sidecars, generation_sidecar, normalized_config, prevailing_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from transformers import PreTrainedModel


class ModuleSource(Source):
    """A transformers model or any `nn.Module` in memory, which is its own skeleton.

    Raises `SourceError` if its weights are quantized already or are not in memory (on the meta device).
    """

    resumable = False

    def __init__(self, model: nn.Module) -> None:
        self.skeleton = model
        self.label = type(model).__name__
        self._aliases = tied_aliases(model)
        self._state = {name: tensor for name, tensor in named_state(model) if name not in self._aliases}
        # A model that was dequantized on loading, as from GGUF, still calls itself quantized.
        if getattr(model, "is_quantized", False) and not all(_is_plain(tensor) for tensor in self._state.values()):
            method = getattr(model, "quantization_method", None)
            raise SourceError(
                f"{self.label} is quantized already ({getattr(method, 'value', method)}); give the original model"
            )
        if any(isinstance(module, PackedWeight) for module in model.modules()):
            raise SourceError(f"{self.label} is quantized already, by woqfx; give the original model")
        absent = [name for name, tensor in self._state.items() if tensor.is_meta]
        if absent:
            raise SourceError(
                f"{self.label} holds {len(absent)} tensors without data (meta device), the first is {absent[0]}; "
                "load the model without a disk-offloading device_map, or give its folder"
            )

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """As in `Source`."""
        return {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in self._state.items()}

    @property
    def aliases(self) -> Mapping[str, str]:
        """As in `Source`."""
        return self._aliases

    def read(self, name: str) -> torch.Tensor:
        """As in `Source`; shares memory with the module where it can."""
        return self._state[name].detach().cpu().contiguous()

    def fingerprint(self) -> str:
        """As in `Source`: from addresses and version counters, so of use within this process only."""
        state = [(name, t.shape, t.dtype, t.data_ptr(), t._version) for name, t in self._state.items()]
        return hashlib.sha256(repr(state).encode()).hexdigest()

    def config(self) -> dict[str, Any] | None:
        """As in `Source`."""
        return config_of(self.skeleton, self.tensors.values())

    def sidecars(self) -> Mapping[str, bytes]:
        """As in `Source`: the files come from the folder or Hub cache that the model was loaded from, if any."""
        model = self.skeleton
        if not _from_transformers(model):
            return {}
        files = generation_of(model)
        name = model.name_or_path
        local = Path(name) if name and Path(name).is_dir() else None
        origin = local or cached_snapshot(name, getattr(model.config, "_commit_hash", None))
        return files | folder_sidecars(ModelFolder(origin)) if origin else files


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) in (torch.Tensor, nn.Parameter) and tensor.dtype in FLOAT_DTYPES.values()


def config_of(model: nn.Module, tensors: Iterable[TensorInfo]) -> dict[str, Any] | None:
    """The config of a live model that holds these tensors, as `Source.config` gives it."""
    if not _from_transformers(model):
        return None
    config = normalized_config(model.config, type(model).__name__, prevailing_dtype(tensors))
    return config | told_untied(model)


def generation_of(model: nn.Module) -> dict[str, bytes]:
    """The generation config of a live model as a file, if it has one."""
    if not _from_transformers(model) or not model.can_generate():
        return {}
    return generation_sidecar(model.generation_config)


def _from_transformers(model: nn.Module) -> TypeGuard[PreTrainedModel]:
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)
