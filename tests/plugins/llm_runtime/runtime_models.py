"""Tiny models that turn on what a family can do: windows that matter, ropes of every kind, biases, soft caps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: The families of the runtime, by the names of `tiny_models`.
FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "smollm3", "granite", "olmo2"),
    *("gpt2", "opt", "gpt_neox", "mixtral", "qwen3_moe", "t5", "mt5", "umt5"),
)

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 10000.0,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.3 * i for i in range(8)],
    "original_max_position_embeddings": 32,
    "partial_rotary_factor": 1.0,
}
_PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}

#: Variants beside the plain one: what to change of `tiny_models`' config.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    "llama-dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
    "llama-llama3": ("llama", {"rope_parameters": _LLAMA3}),
    "llama-yarn": ("llama", {"rope_parameters": _YARN}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-mqa": ("llama", {"num_key_value_heads": 1}),
    "llama-wide-heads": ("llama", {"head_dim": 24}),
    "llama-gelu": ("llama", {"hidden_act": "gelu"}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "qwen2-windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3-longrope": ("phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 32}),
    "phi3-partial": ("phi3", {"rope_parameters": _PARTIAL, "sliding_window": 6}),
    "gemma2-small-window": ("gemma2", {"sliding_window": 4, "attn_logit_softcapping": 5.0}),
    "gemma3-small-window": ("gemma3", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    "gemma3-final-cap": ("gemma3", {"final_logit_softcapping": 3.0}),
    "smollm3-nope": ("smollm3", {"no_rope_layers": [1, 0]}),
    "smollm3-windows": ("smollm3", {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 5}),
    "granite-factors": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.1,
        },
    ),
    "olmo2-bias": ("olmo2", {"attention_bias": True}),
    "gpt2-by-layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}),
    "opt-gelu": ("opt", {"activation_function": "gelu", "enable_bias": False}),
    "opt-plain-norms": ("opt", {"layer_norm_elementwise_affine": False}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    "mixtral-window": ("mixtral", {"sliding_window": 5}),
    "t5-gated": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5-near-buckets": ("t5", {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}),
    "t5-uneven": ("t5", {"num_layers": 1, "num_decoder_layers": 3, "d_kv": 24}),
    "umt5-plain": ("umt5", {"feed_forward_proj": "relu"}),
    "qwen3_moe-normalized": ("qwen3_moe", {"norm_topk_prob": True, "mlp_only_layers": [0]}),
}


#: Every case by its readable id.
CASES: dict[str, tuple[str, dict[str, Any]]] = {**{name: (name, {}) for name in FAMILIES}, **VARIANTS}


def given(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    """What to call a model with for the logits of `tokens` [B, T]. An encoder reads them backwards, and one twice."""
    if not model.config.is_encoder_decoder:
        return {"input_ids": tokens}
    return {"input_ids": torch.cat([tokens.flip(1), tokens[:, :1]], 1), "decoder_input_ids": tokens}
