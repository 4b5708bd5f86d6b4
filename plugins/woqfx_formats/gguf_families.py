"""The families of decoders that llama.cpp and transformers both know, and what each is in GGUF's terms.

Keys are those of GGUF's specification and of llama.cpp (`gguf.Keys`). What `assumed` lists is written nowhere in a
GGUF file: llama.cpp takes it for granted in a family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import gguf
from torch import Tensor

from woqfx_formats.gguf_decoder import Decoder

Setting = Callable[[Decoder], int | float | bool | str]
#: A tensor [N, ...] of transformers' in llama.cpp's order of rows.
RowOrder = Callable[[Tensor, Decoder], Tensor]
#: What must be true of a config, by how a message says it.
Assumptions = Mapping[str, Callable[[Decoder], bool]]


@dataclass(frozen=True)
class Family:
    """`name` is GGUF's; `activations` are transformers' names of what llama.cpp computes.

    `rows` are by the third part of GGUF's names (`attn_q`). `rotary` lists the kinds of rotary embeddings that have a
    form in GGUF. `shifted_norms`: norms are stored plus one.
    """

    name: str
    settings: Mapping[str, Setting]
    activations: tuple[str, ...] = ("silu", "swish")
    rows: Mapping[str, RowOrder] = field(default_factory=dict)
    rotary: tuple[str, ...] = ("default", "linear")
    shifted_norms: bool = False
    assumed: Assumptions = field(default_factory=dict)


def _integer(key: str) -> Setting:
    return lambda decoder: decoder.integer(key)


def _number(key: str) -> Setting:
    return lambda decoder: decoder.number(key)


def _neighbours(heads: Callable[[Decoder], int]) -> RowOrder:
    """llama.cpp rotates neighbours here, transformers halves of a head.

    Row i of a head's first half and row i of the second come to stand side by side.
    """

    def order(stored: Tensor, decoder: Decoder) -> Tensor:
        count = heads(decoder)
        pairs = stored.reshape(count, 2, len(stored) // count // 2, *stored.shape[1:])
        return pairs.transpose(1, 2).reshape(stored.shape)

    return order


def _by_kind(stored: Tensor, decoder: Decoder) -> Tensor:
    """From queries, keys and values head by head to all queries, all keys, all values."""
    heads = stored.reshape(decoder.heads, 3, len(stored) // decoder.heads // 3, *stored.shape[1:])
    return heads.transpose(0, 1).reshape(stored.shape)


def _alternates(period: int) -> Callable[[Decoder], bool]:
    """Whether every `period`-th layer looks at all tokens, and the others at a window."""

    def holds(decoder: Decoder) -> bool:
        kinds = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(decoder.layers)]
        return bool(decoder.get("layer_types") == kinds)

    return holds


def _scale_of_gemma(large: int) -> Callable[[Decoder], bool]:
    """Scores are divided by the root of the head's size; of its share of the width in the model of `large` layers."""

    def holds(decoder: Decoder) -> bool:
        share = decoder.integer("hidden_size") // decoder.heads
        return decoder.number("query_pre_attn_scalar") == (share if decoder.layers == large else decoder.head_size)

    return holds


_BASE: Mapping[str, Setting] = {
    "block_count": lambda decoder: decoder.layers,
    "context_length": _integer("max_position_embeddings"),
    "embedding_length": _integer("hidden_size"),
    "feed_forward_length": _integer("intermediate_size"),
    "vocab_size": _integer("vocab_size"),
    "attention.head_count": lambda decoder: decoder.heads,
}
_ROTATED: Mapping[str, Setting] = {
    "rope.dimension_count": lambda decoder: decoder.rotated,
    "rope.freq_base": lambda decoder: decoder.theta,
}
_LLAMA: Mapping[str, Setting] = {
    **_BASE,
    **_ROTATED,
    "attention.head_count_kv": lambda decoder: decoder.key_heads,
    "attention.key_length": lambda decoder: decoder.head_size,
    "attention.value_length": lambda decoder: decoder.head_size,
    "attention.layer_norm_rms_epsilon": _number("rms_norm_eps"),
}
_WINDOW: Mapping[str, Setting] = {"attention.sliding_window": _integer("sliding_window")}
_SOFT_CAPS: Mapping[str, Setting] = {
    "attn_logit_softcapping": _number("attn_logit_softcapping"),
    "final_logit_softcapping": _number("final_logit_softcapping"),
}
_GRANITE: Mapping[str, Setting] = {
    "attention.scale": _number("attention_multiplier"),
    "embedding_scale": _number("embedding_multiplier"),
    "residual_scale": _number("residual_multiplier"),
    "logit_scale": _number("logits_scaling"),
}
_EXPERTS: Mapping[str, Setting] = {"expert_used_count": _integer("num_experts_per_tok")}
_QWEN3_EXPERTS: Mapping[str, Setting] = {
    **_EXPERTS,
    "expert_count": _integer("num_experts"),
    "expert_feed_forward_length": _integer("moe_intermediate_size"),
}
_PAIRS: Mapping[str, RowOrder] = {
    "attn_q": _neighbours(lambda decoder: decoder.heads),
    "attn_k": _neighbours(lambda decoder: decoder.key_heads),
}
_GEMMA = ("gelu_pytorch_tanh",)

_LLAMA_FAMILY = Family("llama", _LLAMA, rows=_PAIRS, rotary=("default", "linear", "llama3"))

#: The families by transformers' model type.
FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA_FAMILY,
    "mistral": _LLAMA_FAMILY,
    "mixtral": Family(
        "llama", {**_LLAMA, **_EXPERTS, "expert_count": _integer("num_local_experts")}, rows=_PAIRS, rotary=("default",)
    ),
    "qwen2": Family("qwen2", _LLAMA),
    "qwen3": Family("qwen3", _LLAMA),
    "qwen3_moe": Family(
        "qwen3moe",
        {**_LLAMA, **_QWEN3_EXPERTS},
        assumed={
            "the experts' weights are scaled to a sum of one (norm_topk_prob)": lambda d: d.get("norm_topk_prob"),
            "every layer has experts (mlp_only_layers, decoder_sparse_step)": lambda d: (
                not d.get("mlp_only_layers") and d.get("decoder_sparse_step") == 1
            ),
        },
    ),
    "phi3": Family("phi3", _LLAMA, rotary=("default", "longrope")),
    "gemma2": Family(
        "gemma2",
        {**_LLAMA, **_WINDOW, **_SOFT_CAPS},
        activations=_GEMMA,
        rotary=("default",),
        shifted_norms=True,
        assumed={
            "scores have Gemma 2's scale (query_pre_attn_scalar)": _scale_of_gemma(46),
            "every second layer looks at all tokens (layer_types)": _alternates(2),
        },
    ),
    "gemma3_text": Family(
        "gemma3",
        {
            **_LLAMA,
            **_WINDOW,
            "rope.freq_base_swa": lambda d: d.rope_number("rope_theta", "sliding_attention"),
        },
        activations=_GEMMA,
        shifted_norms=True,
        assumed={
            "scores have Gemma 3's scale (query_pre_attn_scalar)": _scale_of_gemma(62),
            "every sixth layer looks at all tokens (layer_types)": _alternates(6),
            "logits and scores are not capped (final_logit_softcapping, attn_logit_softcapping)": lambda d: (
                d.get("final_logit_softcapping") is None and d.get("attn_logit_softcapping") is None
            ),
            "tokens look back only (use_bidirectional_attention)": lambda d: not d.get("use_bidirectional_attention"),
        },
    ),
    "smollm3": Family(
        "smollm3",
        _LLAMA,
        rows=_PAIRS,
        assumed={
            "every fourth layer has no rotary embeddings (no_rope_layers)": lambda d: (
                d.get("no_rope_layers") == [int((i + 1) % 4 != 0) for i in range(d.layers)]
            ),
            "every layer looks at all tokens (use_sliding_window)": lambda d: not d.get("use_sliding_window"),
        },
    ),
    "granite": Family("granite", {**_LLAMA, **_GRANITE}, rows=_PAIRS),
    "olmo2": Family("olmo2", _LLAMA),
    "gpt2": Family(
        "gpt2",
        {**_BASE, "attention.layer_norm_epsilon": _number("layer_norm_epsilon")}
        | {"feed_forward_length": lambda d: d.get("n_inner") or 4 * d.integer("hidden_size")},
        activations=("gelu_new", "gelu_pytorch_tanh"),
        assumed={
            "scores are divided by the root of the head's size alone": lambda d: (
                d.get("scale_attn_weights") and not d.get("scale_attn_by_inverse_layer_idx")
            ),
        },
    ),
    "gpt_neox": Family(
        "gptneox",
        {**_BASE, **_ROTATED, "attention.layer_norm_epsilon": _number("layer_norm_eps")}
        | {"use_parallel_residual": lambda d: bool(d.get("use_parallel_residual"))},
        activations=("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),  # by tanh in llama.cpp, a hair apart
        rows={"attn_qkv": _by_kind},
        assumed={"attention has biases (attention_bias)": lambda d: d.get("attention_bias")},
    ),
}

#: What the kinds of rotary embeddings add to the settings.
ROTARY: Mapping[str, Mapping[str, Setting]] = {
    "default": {},
    "llama3": {},
    "linear": {
        "rope.scaling.type": lambda _: gguf.RopeScalingType.LINEAR.value,
        "rope.scaling.factor": lambda decoder: decoder.rope_number("factor"),
    },
    "longrope": {
        "rope.scaling.type": lambda _: gguf.RopeScalingType.LONGROPE.value,
        "rope.scaling.original_context_length": lambda decoder: decoder.original_context,
        "rope.scaling.attn_factor": lambda decoder: decoder.longrope_scale,
    },
}

#: The tensors that they add, of what transformers computes.
ROTARY_TENSORS: Mapping[str, Mapping[str, Callable[[Decoder], Tensor]]] = {
    "llama3": {"rope_freqs.weight": Decoder.llama3_factors},
    "longrope": {
        "rope_factors_long.weight": lambda decoder: decoder.longrope_factors("long_factor"),
        "rope_factors_short.weight": lambda decoder: decoder.longrope_factors("short_factor"),
    },
}
