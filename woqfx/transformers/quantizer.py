"""woqfx as a quantizer of transformers: `from_pretrained` quantizes on the way, or loads a woqfx checkpoint.

transformers makes the model on the meta device; its insides are taken out (`hollow`) and filled by woqfx's own loader
(`filling`), so that there is one way of loading, which checks everything, and no dense copy of the model at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from woqfx.api import load
from woqfx.dequantizing import dequantize
from woqfx.disk.manifest import MANIFEST
from woqfx.errors import ConfigError, SourceError
from woqfx.source.hub import complete
from woqfx.transformers.filling import convert, fill_quantized
from woqfx.transformers.hollow import Hollow

_ANYWHERE = ("auto", "balanced", "balanced_low_0", "sequential")


class WoqfxHfQuantizer(HfQuantizer):
    """Fills the models that `from_pretrained` makes."""

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._hollow: Hollow | None = None
        self._folder = Path()

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse places other than the CPU."""
        if device_map is None or (isinstance(device_map, str) and device_map in _ANYWHERE):
            return
        places = set(map(str, device_map.values() if isinstance(device_map, Mapping) else [device_map]))
        if others := sorted(places - {"cpu"}):
            raise ConfigError(
                "from_pretrained",
                [f"device_map names {', '.join(others)}: woqfx runs models on the CPU; leave it out, or say 'cpu'"],
            )

    def update_device_map(self, device_map: Any) -> Any:
        """All on the CPU, which is also what "auto" means here."""
        return None if device_map is None else {"": torch.device("cpu")}

    def update_attn_implementation(self, config: Any) -> Any:
        """Take out what stops a transformers without woqfx: this is called before files are looked for."""
        if self.pre_quantized and hasattr(config, "transformers_weights"):
            del config.transformers_weights
        return config

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        self._folder = _folder_of(checkpoint_files)
        self._hollow = Hollow(model)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        hollow, self._hollow = self._hollow, None
        assert hollow is not None
        hollow.put_back(model)
        if self.pre_quantized:
            complete(self._folder, MANIFEST)
            load(self._folder, model=model)
        else:
            fill_quantized(model, self._folder, self.quantization_config)
        convert(model, hollow.dtypes)

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        dequantize(model, dtype)
        return model

    def is_serializable(self) -> bool:
        """Yes: `save_pretrained` writes a woqfx checkpoint."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters on top of it are; gradients go through the packed weights, which stay as they are."""
        return True

    @property
    def is_compileable(self) -> bool:
        """`torch.compile` traces through packed weights."""
        return True


def _folder_of(files: Sequence[str] | None) -> Path:
    folders = {Path(file).parent for file in files or ()}
    if len(folders) != 1:
        raise SourceError(
            "from_pretrained gave woqfx no folder of safetensors to read; give a folder or a name on the Hub, and "
            "neither state_dict nor gguf_file (woqfx.quantize reads .gguf files)"
        )
    return folders.pop()
