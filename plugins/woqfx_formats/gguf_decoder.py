"""A decoder's settings by one set of names, whatever its family, and its rotary embeddings as llama.cpp has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from woqfx.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")


@dataclass(frozen=True)
class Decoder:
    """A config as transformers parses it, which knows the names that are common to all families."""

    config: PreTrainedConfig
    label: str

    def integer(self, key: str) -> int:
        """A whole number of the config. Raises `CheckpointError` if there is none."""
        found = getattr(self.config, key, None)
        if type(found) is not int:
            raise self._bad(key, found, "a whole number")
        return found

    def number(self, key: str) -> float:
        """A number of the config. Raises `CheckpointError` if there is none."""
        found = getattr(self.config, key, None)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self._bad(key, found, "a number")
        return float(found)

    def get(self, key: str) -> Any:
        """Whatever the config says; None if nothing."""
        return getattr(self.config, key, None)

    def _bad(self, key: str, found: Any, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.label}: config.json has {key} {found!r:.80}, where GGUF needs {wanted}")

    @property
    def layers(self) -> int:
        """The number of blocks."""
        return self.integer("num_hidden_layers")

    @property
    def heads(self) -> int:
        """Heads of queries."""
        return self.integer("num_attention_heads")

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.get("num_key_value_heads") is None else self.integer("num_key_value_heads")

    @property
    def head_size(self) -> int:
        """Numbers in a head."""
        if self.get("head_dim") is not None:
            return self.integer("head_dim")
        return self.integer("hidden_size") // self.heads

    @property
    def activation(self) -> str:
        """The name of the feed-forward layers' activation."""
        return str(next(filter(None, map(self.get, _ACTIVATIONS)), None))

    @property
    def rope(self) -> Mapping[str, Any]:
        """The rotary embeddings' parameters; those of full attention, where a model has several."""
        return self.rope_of("full_attention")

    def rope_of(self, kind: str) -> Mapping[str, Any]:
        """The rotary embeddings' parameters in layers of one kind of attention."""
        found: Mapping[str, Any] = self.get("rope_parameters") or {}
        shared: Mapping[str, Any] = found.get(kind, found)
        return shared

    @property
    def rope_type(self) -> str:
        """The kind of rotary embeddings, by transformers' names."""
        return str(self.rope.get("rope_type", "default"))

    @property
    def rotated(self) -> int:
        """Numbers of a head that are rotated."""
        return int(self.head_size * self.rope.get("partial_rotary_factor", 1.0))

    @property
    def theta(self) -> float:
        """The base of the rotary frequencies."""
        return float(self.rope.get("rope_theta", 10000.0))

    def rope_number(self, key: str, kind: str = "full_attention") -> float:
        """A number among the rotary embeddings' parameters. Raises `CheckpointError` if there is none."""
        found = self.rope_of(kind).get(key)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self._bad(f"rope_parameters.{key}", found, "a number")
        return float(found)

    def llama3_factors(self) -> Tensor:
        """What Llama 3 divides its rotary frequencies by, float32 [head size / 2] (transformers, `llama3`)."""
        frequencies = self.theta ** -(torch.arange(0, self.rotated, 2, dtype=torch.float64) / self.rotated)
        lengths = 2 * torch.pi / frequencies
        context, factor = self.rope_number("original_max_position_embeddings"), self.rope_number("factor")
        lowest, highest = self.rope_number("low_freq_factor"), self.rope_number("high_freq_factor")
        low, high = context / lowest, context / highest
        smooth = (context / lengths - lowest) / (highest - lowest)
        between = 1 / ((1 - smooth) / factor + smooth)
        factors = torch.where(lengths < high, 1.0, torch.where(lengths > low, factor, between))
        return factors.to(torch.float32)

    def longrope_factors(self, key: str) -> Tensor:
        """What LongRoPE divides its rotary frequencies by, float32 [rotated / 2]; `key` says in which texts."""
        found, wanted = self.rope.get(key), self.rotated // 2
        is_list = isinstance(found, list) and len(found) == wanted
        if not is_list or not all(isinstance(one, int | float) for one in found):  # type: ignore[union-attr]
            raise self._bad(f"rope_parameters.{key}", found, f"{wanted} numbers")
        return torch.tensor(found, dtype=torch.float32)

    @property
    def original_context(self) -> int:
        """The number of tokens that LongRoPE's model was trained on first."""
        found = self.rope.get("original_max_position_embeddings") or self.get("original_max_position_embeddings")
        if type(found) is not int or found < 2:
            raise self._bad("original_max_position_embeddings", found, "a number of tokens")
        return found

    @property
    def longrope_scale(self) -> float:
        """What LongRoPE multiplies the rotated numbers by (its paper, arXiv:2402.13753, and Phi-3's config)."""
        stated = self.rope.get("attention_factor")
        if stated is not None:
            return float(stated)
        longer = self.rope.get("factor") or self.integer("max_position_embeddings") / self.original_context
        return 1.0 if longer <= 1 else math.sqrt(1 + math.log(longer) / math.log(self.original_context))
