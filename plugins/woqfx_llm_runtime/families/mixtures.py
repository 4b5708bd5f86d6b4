"""Mixtures of experts."""

from __future__ import annotations

from typing import Any

from woqfx_llm_runtime.description import MLP, Attention, Description, Experts, Layer
from woqfx_llm_runtime.families.fields import Fields
from woqfx_llm_runtime.families.llama import qwen3_attention, read_mlp, read_window
from woqfx_llm_runtime.families.parts import ACTIVATIONS, decoder, head_sizes, linear, rms_norm, separate_attention
from woqfx_llm_runtime.families.rope import read_rope


def mixtral(fields: Fields, model: Any) -> Description:
    """Mixtral: Mistral with experts in every layer, their weights made to sum to 1."""
    rope = read_rope(fields, model.model.rotary_emb, head_sizes(fields)["head_dim"])
    window, inner = read_window(fields), fields.size("intermediate_size")
    count = fields.size("num_local_experts")

    def layer(name: str, i: int) -> Layer:
        attention = separate_attention(fields, f"{name}.self_attn", rope, window=window)
        return _block(fields, name, attention, _experts(fields, f"{name}.mlp", count, inner, normalize=True))

    return decoder(fields, layer)


def qwen3_moe(fields: Fields, model: Any) -> Description:
    """Qwen 3 with experts in all layers, or in some."""
    rope = read_rope(fields, model.model.rotary_emb, head_sizes(fields)["head_dim"])
    fields.get("use_sliding_window")  # the config has cleared sliding_window by it
    window, inner = read_window(fields), fields.size("moe_intermediate_size")
    fields.size("intermediate_size")  # of the layers without experts, if there are any
    count = fields.get("num_experts") or 0
    step, dense = fields.size("decoder_sparse_step"), fields.get("mlp_only_layers") or ()
    normalize = fields.flag("norm_topk_prob")

    def layer(name: str, i: int) -> Layer:
        attention = qwen3_attention(fields, f"{name}.self_attn", rope, window)
        if i in dense or not count or (i + 1) % step:
            return _block(fields, name, attention, read_mlp(fields, f"{name}.mlp"))
        return _block(fields, name, attention, _experts(fields, f"{name}.mlp", count, inner, normalize=normalize))

    return decoder(fields, layer)


def _experts(fields: Fields, name: str, count: int, inner: int, *, normalize: bool) -> Experts:
    top_k = fields.size("num_experts_per_tok")
    if top_k > count:
        fields.problems.append(f"num_experts_per_tok {top_k} is more than the {count} experts")
    return Experts(
        router=linear(f"{name}.gate"),
        gate_up=f"{name}.experts.gate_up_proj",
        down=f"{name}.experts.down_proj",
        count=count,
        top_k=top_k,
        intermediate_size=inner,
        normalize=normalize,
        activation=fields.choice("hidden_act", ACTIVATIONS),
    )


def _block(fields: Fields, name: str, attention: Attention, mlp: MLP | Experts) -> Layer:
    return Layer(
        attention,
        mlp,
        input_norm=rms_norm(fields, f"{name}.input_layernorm"),
        mlp_norm=rms_norm(fields, f"{name}.post_attention_layernorm"),
    )
