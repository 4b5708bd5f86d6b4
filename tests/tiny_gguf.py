"""Tiny GGUF files of several architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tiny_models import tiny_model

_COMMON = {"context_length": 64, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96}
_LLAMA = {
    **_COMMON,
    "vocab_size": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 16,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 10000.0,
}
# Of each kind of rule that transformers has: permuted rows, merged experts, transposed weights without a
# vocabulary size, weight transforms, shifted norms, nothing at all.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", _LLAMA, {}),
    "qwen3moe": (
        "qwen3_moe",
        {**_LLAMA, "expert_count": 4, "expert_used_count": 2},
        {"moe_intermediate_size": 768},  # transformers does not read this size
    ),
    "gpt2": (
        "gpt2",
        {**_COMMON, "attention.head_count": 4, "attention.layer_norm_epsilon": 1e-5},
        {"n_positions": 1024, "n_inner": None},  # nor these
    ),
    "lfm2": (
        "lfm2",
        {
            **{key: _LLAMA[key] for key in _LLAMA if key not in ("attention.head_count_kv", "attention.key_length")},
            "attention.head_count_kv": [0, 2],
            "shortconv.l_cache": 3,
        },
        {},
    ),
    "gemma2": ("gemma2", _LLAMA, {}),
    "qwen2": ("qwen2", _LLAMA, {}),
}


def write(
    path: Path,
    architecture: str,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """A tiny GGUF file with the tensors that a model of this architecture has; matrices as `kind`."""
    family, settings, changes = ARCHITECTURES[architecture]
    model = tiny_model(family, **changes)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    for key, value in settings.items():
        kinds = {float: writer.add_float32, int: writer.add_uint32, list: writer.add_array}
        kinds[type(value)](f"{architecture}.{key}", value)
    if architecture in ("gpt2", "lfm2"):
        writer.add_token_list([f"t{number}" for number in range(128)])
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, 2)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        parts = [("", tensor)]
        if name.endswith("gate_up_proj"):
            gate, up = tensor.chunk(2, dim=1)
            parts = [("ffn_gate_exps", gate), ("ffn_up_exps", up)]
        for part, values in parts:
            stem, _, suffix = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "weight")
            mapped = f"blk.{name.split('.')[2]}.{part}" if part else names.get_name(stem)
            conv1d = architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
            array = (values.t() if conv1d else values).contiguous().numpy()
            array = array.squeeze(1) if name.endswith("conv.conv.weight") else array
            stored = kind if array.ndim > 1 and array.shape[-1] % 32 == 0 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(f"{mapped}.{suffix}", gguf.quantize(array, stored), raw_dtype=stored)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
