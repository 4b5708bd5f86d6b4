"""T5 and its kin: encoder and decoder, biases by distance, nothing scaled."""

from __future__ import annotations

from typing import Any

from woqfx_llm_runtime.description import (
    MLP,
    Attention,
    CrossAttention,
    Description,
    Encoder,
    Layer,
    Norm,
    RelativeBias,
)
from woqfx_llm_runtime.families.fields import Fields
from woqfx_llm_runtime.families.parts import ACTIVATIONS, HeadSizes, linear

#: Distances have no end; what a sequence may have is bounded by the memory for its keys and values.
_CONTEXT = 1 << 20
#: Far beyond any model; a config that says more would have tables made that fill the memory.
_MOST_BUCKETS, _LARGEST_DISTANCE, _LARGEST_HEAD, _MOST_HEADS = 1 << 12, 1 << 16, 1 << 14, 1 << 10


def t5(fields: Fields, model: Any) -> Description:
    """T5 1.0 and 1.1 (FLAN): the first layer's biases are those of all; 1.0 scales its logits."""
    scaled = fields.flag("scale_decoder_outputs")
    return _encoder_decoder(fields, shared_bias=True, scaled=scaled)


def mt5(fields: Fields, model: Any) -> Description:
    """mT5: as T5 1.1."""
    return _encoder_decoder(fields, shared_bias=True, scaled=False)


def umt5(fields: Fields, model: Any) -> Description:
    """umT5: each layer has biases of its own."""
    scaled = fields.flag("tie_word_embeddings")
    return _encoder_decoder(fields, shared_bias=False, scaled=scaled)


def _encoder_decoder(fields: Fields, *, shared_bias: bool, scaled: bool) -> Description:
    hidden, vocab_size = fields.size("d_model"), fields.size("vocab_size")
    eps, gated = fields.number("layer_norm_epsilon"), fields.flag("is_gated_act")
    fields.size("d_ff")
    fields.get("feed_forward_proj")  # what the two fields here were made of
    activation = fields.choice("dense_act_fn", ACTIVATIONS)
    sizes = _head_sizes(fields)

    def norm(module: str) -> Norm:
        return Norm(f"{module}.layer_norm.weight", eps)

    def attention(stack: str, i: int, *, causal: bool) -> Attention:
        owner = f"{stack}.block.{0 if shared_bias else i}.layer.0.SelfAttention"
        return Attention(
            **_projections(f"{stack}.block.{i}.layer.0.SelfAttention"),
            **sizes,
            scale=1.0,
            bias=_bias(fields, f"{owner}.relative_attention_bias.weight", bidirectional=not causal),
            causal=causal,
        )

    def mlp(module: str) -> MLP:
        dense = f"{module}.DenseReluDense"
        gate, up = (linear(f"{dense}.wi_0"), linear(f"{dense}.wi_1")) if gated else (None, linear(f"{dense}.wi"))
        return MLP(up=up, down=linear(f"{dense}.wo"), gate=gate, activation=activation)

    def encoder_layer(i: int) -> Layer:
        name = f"encoder.block.{i}.layer"
        return Layer(
            attention("encoder", i, causal=False),
            mlp(f"{name}.1"),
            input_norm=norm(f"{name}.0"),
            mlp_norm=norm(f"{name}.1"),
        )

    def decoder_layer(i: int) -> Layer:
        name = f"decoder.block.{i}.layer"
        return Layer(
            attention("decoder", i, causal=True),
            mlp(f"{name}.2"),
            input_norm=norm(f"{name}.0"),
            cross=CrossAttention(**_projections(f"{name}.1.EncDecAttention"), **sizes, scale=1.0),
            cross_norm=norm(f"{name}.1"),
            mlp_norm=norm(f"{name}.2"),
        )

    return Description(
        hidden_size=hidden,
        vocab_size=vocab_size,
        context=_CONTEXT,
        embedding="shared.weight",
        encoder=Encoder(
            tuple(encoder_layer(i) for i in range(fields.size("num_layers"))),
            Norm("encoder.final_layer_norm.weight", eps),
        ),
        layers=tuple(decoder_layer(i) for i in range(fields.size("num_decoder_layers"))),
        head=linear("lm_head"),
        final_norm=Norm("decoder.final_layer_norm.weight", eps),
        logit_scale=hidden**-0.5 if scaled else 1.0,
    )


def _projections(module: str) -> dict[str, Any]:
    names = {"query": "q", "key": "k", "value": "v", "output": "o"}
    return {part: linear(f"{module}.{name}") for part, name in names.items()}


def _head_sizes(fields: Fields) -> HeadSizes:
    heads, head_dim = fields.size("num_heads"), fields.size("d_kv")
    for name, size, most in (("num_heads", heads, _MOST_HEADS), ("d_kv", head_dim, _LARGEST_HEAD)):
        if size > most:
            fields.problems.append(f"{name} is {size}, above {most}")
    return {"heads": heads, "kv_heads": heads, "head_dim": head_dim}


def _bias(fields: Fields, weight: str, *, bidirectional: bool) -> RelativeBias:
    buckets = fields.size("relative_attention_num_buckets")
    furthest = fields.size("relative_attention_max_distance")
    if not (4 <= buckets <= _MOST_BUCKETS and buckets // 2 < furthest <= _LARGEST_DISTANCE):
        problem = (
            f"relative_attention_num_buckets {buckets} and relative_attention_max_distance {furthest}: the runtime "
            f"knows 4 to {_MOST_BUCKETS} buckets, and distances above half of that up to {_LARGEST_DISTANCE}"
        )
        if problem not in fields.problems:
            fields.problems.append(problem)
    return RelativeBias(weight, buckets, furthest, bidirectional)
