"""Gemma: norms whose factor is 1 + w, before and behind attention and MLP; windows in most layers; soft caps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from woqfx_llm_runtime.description import Description, Layer, Norm, Rope
from woqfx_llm_runtime.families.fields import Fields
from woqfx_llm_runtime.families.llama import read_windows
from woqfx_llm_runtime.families.parts import (
    ACTIVATIONS,
    decoder,
    gated_mlp,
    head_sizes,
    rms_norm,
    separate_attention,
)
from woqfx_llm_runtime.families.rope import read_rope


def gemma2(fields: Fields, model: Any) -> Description:
    """Gemma 2."""
    fields.refuse_unless("use_bidirectional_attention", None, False)
    rope = read_rope(fields, model.model.rotary_emb, head_sizes(fields)["head_dim"])
    ropes = {"full_attention": rope, "sliding_attention": rope}
    return _gemma(fields, model, ropes, head_norms=False, softcap=_softcap(fields, "attn_logit_softcapping"))


def gemma3(fields: Fields, model: Any) -> Description:
    """Gemma 3, the text model: norms of query and key in each head, another rope for layers with a window."""
    fields.refuse_unless("use_bidirectional_attention", False, None)
    fields.refuse_unless("attn_logit_softcapping", None)  # the model's attention does not look at it
    head_dim, rotary = head_sizes(fields)["head_dim"], model.model.rotary_emb
    types = set(fields.layer_types(fields.size("num_hidden_layers")))
    ropes = {kind: read_rope(fields, rotary, head_dim, layer_type=kind) for kind in types}
    return _gemma(fields, model, ropes, head_norms=True, softcap=None)


def _gemma(
    fields: Fields, model: Any, ropes: Mapping[str, Rope], *, head_norms: bool, softcap: float | None
) -> Description:
    windows = read_windows(fields)
    types = fields.layer_types(fields.size("num_hidden_layers"))
    scalar, bias = fields.number("query_pre_attn_scalar"), fields.flag("attention_bias")
    if scalar <= 0:
        fields.problems.append(f"query_pre_attn_scalar is {scalar}, not positive")
        scalar = 1.0
    activation = fields.choice("hidden_activation", ACTIVATIONS)
    fields.size("intermediate_size")

    def norm(name: str) -> Norm:
        return rms_norm(fields, name, plus_one=True)

    def layer(name: str, i: int) -> Layer:
        at = f"{name}.self_attn"
        norms = {"query_norm": norm(f"{at}.q_norm"), "key_norm": norm(f"{at}.k_norm")} if head_norms else {}
        attention = separate_attention(
            fields,
            at,
            ropes[types[i]],
            bias=bias,
            output_bias=bias,
            scale=scalar**-0.5,
            window=windows[i],
            softcap=softcap,
            **norms,
        )
        return Layer(
            attention,
            gated_mlp(f"{name}.mlp", activation),
            input_norm=norm(f"{name}.input_layernorm"),
            attention_output_norm=norm(f"{name}.post_attention_layernorm"),
            mlp_norm=norm(f"{name}.pre_feedforward_layernorm"),
            mlp_output_norm=norm(f"{name}.post_feedforward_layernorm"),
        )

    # The model multiplies by the square root as its weights' type holds it.
    scale = torch.tensor(fields.size("hidden_size") ** 0.5).to(model.get_input_embeddings().weight.dtype)
    return decoder(
        fields,
        layer,
        plus_one=True,
        embedding_scale=float(scale),
        logit_softcap=_softcap(fields, "final_logit_softcapping"),
    )


def _softcap(fields: Fields, name: str) -> float | None:
    if fields.get(name) is None:
        return None
    cap = fields.number(name)
    if cap <= 0:
        fields.problems.append(f"{name} is {cap}, not positive")
    return cap
