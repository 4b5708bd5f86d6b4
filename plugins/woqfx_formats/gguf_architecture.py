"""What llama.cpp must know of a model besides its weights: settings, names of tensors, the order of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from torch import Tensor

from woqfx.errors import CheckpointError

#: GGUF's architecture by the model type of transformers: decoders of one plan, with dense feed-forward layers.
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_QUERIES = (".attn_q.weight", ".attn_q.bias")
_KEYS = (".attn_k.weight", ".attn_k.bias")


@dataclass(frozen=True)
class Architecture:
    """A model's architecture in GGUF's terms; `config` is its `config.json`."""

    name: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any] | None, label: str) -> Architecture:
        """Raises `CheckpointError` for architectures that are not written, or settings that GGUF has no word for."""
        found = (config or {}).get("model_type")
        if config is None or found not in _ARCHITECTURES:
            raise CheckpointError(
                f"{label}: GGUF is written for {', '.join(_ARCHITECTURES)}, not for {found!r:.80}; convert "
                "the original with llama.cpp"
            )
        made = cls(_ARCHITECTURES[found], config)
        kind = made._rope.get("rope_type", "default")
        if kind not in ("default", "linear", "llama3"):
            raise CheckpointError(f"{label}: rotary embeddings of type {kind!r} are not written to GGUF")
        return made

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return int(self.config["vocab_size"])

    @property
    def _heads(self) -> int:
        return int(self.config["num_attention_heads"])

    @property
    def _key_heads(self) -> int:
        return int(self.config.get("num_key_value_heads") or self._heads)

    @property
    def _head_size(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self._heads)

    @property
    def _rope(self) -> Mapping[str, Any]:
        found = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        return {**found, "rope_type": found.get("rope_type", found.get("type", "default"))}

    @property
    def _theta(self) -> float:
        return float(self._rope.get("rope_theta", self.config.get("rope_theta", 10000.0)))

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Add the settings to the metadata."""
        config = self.config
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(self._heads)
        writer.add_head_count_kv(self._key_heads)
        writer.add_key_length(self._head_size)
        writer.add_value_length(self._head_size)
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_dimension_count(self._head_size)
        writer.add_rope_freq_base(self._theta)
        writer.add_vocab_size(self.vocabulary)
        if self._rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(self._rope["factor"])

    def tensor_name(self, name: str) -> str:
        """GGUF's name of a parameter. Raises `CheckpointError` if it has none."""
        arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == self.name)
        stem, _, suffix = name.rpartition(".")
        found = gguf.get_tensor_name_map(arch, self.config["num_hidden_layers"]).get_name(stem)
        if found is None:
            raise CheckpointError(f"GGUF has no place for {name[:200]} in an architecture {self.name}")
        return f"{found}.{suffix}"

    def rows(self, stored: Tensor, name: str) -> Tensor:
        """A tensor [N, ...] of GGUF's name `name` in llama.cpp's order of rows.

        Its architecture `llama` rotates neighbours, transformers rotates halves of a head: row i of the first half
        and row i of the second come to stand side by side.
        """
        if self.name != "llama" or not name.endswith(_QUERIES + _KEYS):
            return stored
        heads = self._heads if name.endswith(_QUERIES) else self._key_heads
        pairs = stored.reshape(heads, 2, len(stored) // heads // 2, *stored.shape[1:])
        return pairs.transpose(1, 2).reshape(stored.shape)

    def extra_tensors(self) -> dict[str, Tensor]:
        """What GGUF keeps as a tensor and transformers computes: the factors of Llama 3's rotary frequencies."""
        if self._rope["rope_type"] != "llama3":
            return {}
        rope = self._rope
        frequencies = self._theta ** -(torch.arange(0, self._head_size, 2, dtype=torch.float64) / self._head_size)
        lengths = 2 * torch.pi / frequencies
        context, factor = rope["original_max_position_embeddings"], rope["factor"]
        low, high = context / rope["low_freq_factor"], context / rope["high_freq_factor"]
        smooth = (context / lengths - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        between = 1 / ((1 - smooth) / factor + smooth)
        factors = torch.where(lengths < high, 1.0, torch.where(lengths > low, float(factor), between))
        return {"rope_freqs.weight": factors.to(torch.float32)}
