"""Parts that families of models have in common, under the names that transformers gives their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from woqfx_llm_runtime.description import MLP, Activation, Attention, Description, Layer, Linear, Norm, Rope
from woqfx_llm_runtime.families.fields import Fields
from woqfx_llm_runtime.families.rope import context_of

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
}


#: Far beyond any model; a config that says more would have tables made that fill the memory.
_LARGEST_HEAD = 1 << 14


def linear(module: str, bias: bool = False, rows: tuple[range, ...] = ()) -> Linear:
    """A linear layer by its module's name; `rows` of it, by default all."""
    return Linear(f"{module}.weight", f"{module}.bias" if bias else None, rows)


def rms_norm(fields: Fields, module: str, *, plus_one: bool = False) -> Norm:
    """An RMS norm by its module's name."""
    return Norm(f"{module}.weight", fields.number("rms_norm_eps"), plus_one=plus_one)


def layer_norm(module: str, eps: float, *, affine: bool = True) -> Norm:
    """A layer norm by its module's name."""
    return Norm(f"{module}.weight" if affine else None, eps, "layer", f"{module}.bias" if affine else None)


class HeadSizes(TypedDict):
    """Arguments of `Attention`."""

    heads: int
    kv_heads: int
    head_dim: int


def head_sizes(fields: Fields) -> HeadSizes:
    """The numbers of heads, and the size of one."""
    heads = fields.size("num_attention_heads")
    kv_heads = heads if fields.get("num_key_value_heads") is None else fields.size("num_key_value_heads")
    given = fields.get("head_dim")
    head_dim = fields.size("hidden_size") // heads if given is None else fields.size("head_dim")
    if heads % kv_heads:
        fields.problems.append(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if head_dim % 2 or head_dim > _LARGEST_HEAD:
        fields.problems.append(f"head_dim {head_dim} is not an even number up to {_LARGEST_HEAD}")
        head_dim = 2
    return {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}


def separate_attention(
    fields: Fields,
    module: str,
    rope: Rope | None,
    *,
    bias: bool = False,
    output_bias: bool = False,
    scale: float | None = None,
    **more: Any,
) -> Attention:
    """Attention with q_proj, k_proj, v_proj and o_proj."""
    sizes = head_sizes(fields)
    return Attention(
        query=linear(f"{module}.q_proj", bias),
        key=linear(f"{module}.k_proj", bias),
        value=linear(f"{module}.v_proj", bias),
        output=linear(f"{module}.o_proj", output_bias),
        scale=sizes["head_dim"] ** -0.5 if scale is None else scale,
        rope=rope,
        **sizes,
        **more,
    )


def gated_mlp(module: str, activation: Activation, *, bias: bool = False) -> MLP:
    """An MLP with gate_proj, up_proj and down_proj."""
    return MLP(
        up=linear(f"{module}.up_proj", bias),
        down=linear(f"{module}.down_proj", bias),
        gate=linear(f"{module}.gate_proj", bias),
        activation=activation,
    )


def decoder(fields: Fields, layer: Callable[[str, int], Layer], *, plus_one: bool = False, **more: Any) -> Description:
    """A model with model.embed_tokens, model.layers, model.norm and lm_head; `layer(name, i)` describes each."""
    return Description(
        hidden_size=fields.size("hidden_size"),
        vocab_size=fields.size("vocab_size"),
        context=context_of(fields),
        embedding="model.embed_tokens.weight",
        layers=tuple(layer(f"model.layers.{i}", i) for i in range(fields.size("num_hidden_layers"))),
        head=linear("lm_head"),
        final_norm=rms_norm(fields, "model.norm", plus_one=plus_one),
        **more,
    )
