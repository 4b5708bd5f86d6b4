"""Llama and its kin: RMS norms, rotary embeddings, gated MLPs."""

from __future__ import annotations

from typing import Any

from woqfx_llm_runtime.description import MLP, Attention, Description, Layer, Rope
from woqfx_llm_runtime.families.fields import Fields
from woqfx_llm_runtime.families.parts import (
    ACTIVATIONS,
    decoder,
    gated_mlp,
    head_sizes,
    linear,
    rms_norm,
    separate_attention,
)
from woqfx_llm_runtime.families.rope import read_rope


def llama(fields: Fields, model: Any) -> Description:
    """Llama 1 to 3, SmolLM, TinyLlama and many others."""
    rope, bias = _rope(fields, model), fields.flag("attention_bias")
    return decoder(
        fields,
        lambda name, i: _block(
            fields, name, separate_attention(fields, f"{name}.self_attn", rope, bias=bias, output_bias=bias)
        ),
    )


def mistral(fields: Fields, model: Any) -> Description:
    """Mistral: a sliding window in every layer, if there is one."""
    rope, window = _rope(fields, model), read_window(fields)
    return decoder(
        fields,
        lambda name, i: _block(fields, name, separate_attention(fields, f"{name}.self_attn", rope, window=window)),
    )


def qwen2(fields: Fields, model: Any) -> Description:
    """Qwen 2 and 2.5: biases of query, key and value; a sliding window in some layers."""
    rope, windows = _rope(fields, model), read_windows(fields)
    return decoder(
        fields,
        lambda name, i: _block(
            fields, name, separate_attention(fields, f"{name}.self_attn", rope, bias=True, window=windows[i])
        ),
    )


def qwen3(fields: Fields, model: Any) -> Description:
    """Qwen 3: norms of query and key in each head."""
    rope, windows = _rope(fields, model), read_windows(fields)
    return decoder(
        fields, lambda name, i: _block(fields, name, qwen3_attention(fields, f"{name}.self_attn", rope, windows[i]))
    )


def qwen3_attention(fields: Fields, name: str, rope: Rope, window: int | None) -> Attention:
    """The attention of Qwen 3, dense or not."""
    bias = fields.flag("attention_bias")
    return separate_attention(
        fields,
        name,
        rope,
        bias=bias,
        output_bias=bias,
        window=window,
        query_norm=rms_norm(fields, f"{name}.q_norm"),
        key_norm=rms_norm(fields, f"{name}.k_norm"),
    )


def smollm3(fields: Fields, model: Any) -> Description:
    """SmolLM 3: some layers without rotary embedding."""
    rope, windows, bias = _rope(fields, model), read_windows(fields), fields.flag("attention_bias")
    fields.get("no_rope_layer_interval")  # the config has made no_rope_layers of it
    rotated = fields.get("no_rope_layers")
    if not isinstance(rotated, list) or len(rotated) != fields.size("num_hidden_layers"):
        fields.problems.append("no_rope_layers does not say of each layer whether it rotates")
        rotated = [1] * fields.size("num_hidden_layers")

    def layer(name: str, i: int) -> Layer:
        attention = separate_attention(
            fields,
            f"{name}.self_attn",
            rope if rotated[i] else None,
            bias=bias,
            output_bias=bias,
            window=windows[i] if fields.flag("use_sliding_window") else None,
        )
        return _block(fields, name, attention)

    return decoder(fields, layer)


def granite(fields: Fields, model: Any) -> Description:
    """Granite: Llama with factors on embedding, attention, residuals and logits."""
    rope, bias = _rope(fields, model), fields.flag("attention_bias")
    factors = {name: fields.number(name) for name in ("attention_multiplier", "residual_multiplier", "logits_scaling")}
    if not factors["logits_scaling"]:
        fields.problems.append("logits_scaling is 0")

    def layer(name: str, i: int) -> Layer:
        attention = separate_attention(
            fields,
            f"{name}.self_attn",
            rope,
            bias=bias,
            output_bias=bias,
            scale=factors["attention_multiplier"],
        )
        return _block(fields, name, attention, residual_scale=factors["residual_multiplier"])

    return decoder(
        fields,
        layer,
        embedding_scale=fields.number("embedding_multiplier"),
        logit_scale=1 / (factors["logits_scaling"] or 1.0),
    )


def olmo2(fields: Fields, model: Any) -> Description:
    """OLMo 2: norms behind attention and MLP instead of before, and over whole queries and keys."""
    rope, bias = _rope(fields, model), fields.flag("attention_bias")

    def layer(name: str, i: int) -> Layer:
        attention = separate_attention(
            fields,
            f"{name}.self_attn",
            rope,
            bias=bias,
            output_bias=bias,
            query_norm=rms_norm(fields, f"{name}.self_attn.q_norm"),
            key_norm=rms_norm(fields, f"{name}.self_attn.k_norm"),
            norm_span="projection",
        )
        return Layer(
            attention,
            read_mlp(fields, f"{name}.mlp"),
            attention_output_norm=rms_norm(fields, f"{name}.post_attention_layernorm"),
            mlp_output_norm=rms_norm(fields, f"{name}.post_feedforward_layernorm"),
        )

    return decoder(fields, layer)


def phi3(fields: Fields, model: Any) -> Description:
    """Phi 3: one weight for query, key and value, one for gate and up; a part of each head rotates."""
    sizes, window = head_sizes(fields), read_window(fields)
    fields.get("original_max_position_embeddings")  # the config has put it into rope_parameters
    rope = read_rope(fields, model.model.rotary_emb, sizes["head_dim"], partial=True)
    queries, keys = sizes["heads"] * sizes["head_dim"], sizes["kv_heads"] * sizes["head_dim"]
    inner, activation = fields.size("intermediate_size"), fields.choice("hidden_act", ACTIVATIONS)

    def layer(name: str, i: int) -> Layer:
        fused, gate_up = f"{name}.self_attn.qkv_proj", f"{name}.mlp.gate_up_proj"
        attention = Attention(
            query=linear(fused, rows=(range(queries),)),
            key=linear(fused, rows=(range(queries, queries + keys),)),
            value=linear(fused, rows=(range(queries + keys, queries + 2 * keys),)),
            output=linear(f"{name}.self_attn.o_proj"),
            scale=sizes["head_dim"] ** -0.5,
            rope=rope,
            window=window,
            **sizes,
        )
        mlp = MLP(
            gate=linear(gate_up, rows=(range(inner),)),
            up=linear(gate_up, rows=(range(inner, 2 * inner),)),
            down=linear(f"{name}.mlp.down_proj"),
            activation=activation,
        )
        return Layer(
            attention,
            mlp,
            input_norm=rms_norm(fields, f"{name}.input_layernorm"),
            mlp_norm=rms_norm(fields, f"{name}.post_attention_layernorm"),
        )

    return decoder(fields, layer)


def read_mlp(fields: Fields, name: str) -> MLP:
    """The gated MLP of the config's activation."""
    fields.size("intermediate_size")
    return gated_mlp(name, fields.choice("hidden_act", ACTIVATIONS), bias=fields.flag("mlp_bias"))


def read_window(fields: Fields) -> int | None:
    """The window of every layer; None for none."""
    return None if fields.get("sliding_window") is None else fields.size("sliding_window")


def read_windows(fields: Fields) -> tuple[int | None, ...]:
    """The window of each layer, by `layer_types`."""
    fields.get("use_sliding_window"), fields.get("max_window_layers")  # the config has made layer_types of them
    window = read_window(fields)
    types = fields.layer_types(fields.size("num_hidden_layers"))
    if window is None and "sliding_attention" in types:
        fields.problems.append("layer_types has sliding_attention, but sliding_window is None")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _rope(fields: Fields, model: Any) -> Rope:
    return read_rope(fields, model.model.rotary_emb, head_sizes(fields)["head_dim"])


def _block(fields: Fields, name: str, attention: Attention, **more: Any) -> Layer:
    """Norms before attention and MLP."""
    return Layer(
        attention,
        read_mlp(fields, f"{name}.mlp"),
        input_norm=rms_norm(fields, f"{name}.input_layernorm"),
        mlp_norm=rms_norm(fields, f"{name}.post_attention_layernorm"),
        **more,
    )
