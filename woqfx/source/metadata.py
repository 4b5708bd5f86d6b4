"""What goes with the tensors: the config, the generation config and the tokenizer's files."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import GenerationConfig, PreTrainedConfig

    from woqfx.source.base import TensorInfo
    from woqfx.source.files import ModelFolder

GENERATION_CONFIG = "generation_config.json"
MAX_SIDECAR = 128 << 20  # bytes; the largest tokenizers in use have about 35 MB

#: Files that are carried over as they are. Weights and code are not among them.
SIDECARS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "vocab.bpe", "encoder.json", "bpe.codes"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "source.spm", "target.spm"),
    *("tekken.json", "chat_template.jinja", "chat_template.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md"),
)

# What depends on the machine and the call, not on the model, or could make code run.
_DROPPED = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "_model_name_or_path",
        "transformers_version",
        "auto_map",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_experts_implementation",
        "_experts_implementation_internal",
        "attn_implementation",
        "experts_implementation",
        "_commit_hash",
        "quantization_config",
        "compression_config",
        "transformers_weights",
        "dtype",
        "torch_dtype",
    }
)


def normalized_config(config: PreTrainedConfig, class_name: str, dtype: torch.dtype) -> dict[str, Any]:
    """`config` as the output's `config.json` holds it; the same by whatever way the model came.

    `dtype` is the model's own and is written once, at the top; the parts of a composite model inherit it.
    """
    kept: dict[str, Any] = _without_dropped(config.to_diff_dict())
    return kept | {"architectures": [class_name], "dtype": str(dtype).removeprefix("torch.")}


def _without_dropped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_dropped(inner) for key, inner in value.items() if key not in _DROPPED}
    return value


def prevailing_dtype(tensors: Iterable[TensorInfo]) -> torch.dtype:
    """The floating-point dtype that holds the most elements; the first of equals; float32 if there is none."""
    elements: Counter[torch.dtype] = Counter()
    for info in tensors:
        if info.dtype.is_floating_point:
            elements[info.dtype] += prod(info.shape)
    return max(elements, key=elements.__getitem__, default=torch.float32)


def generation_sidecar(generation: GenerationConfig) -> dict[str, bytes]:
    """The generation config as a file, without what depends on the machine."""
    return {GENERATION_CONFIG: generation.to_json_string(use_diff=True, ignore_metadata=True).encode()}


def folder_sidecars(folder: ModelFolder) -> dict[str, bytes]:
    """The files of `SIDECARS` that `folder` holds, byte for byte."""
    found = ((name, folder.read(name, MAX_SIDECAR)) for name in SIDECARS)
    return {name: data for name, data in found if data is not None}
