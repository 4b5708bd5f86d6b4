"""An architecture as data: what the engine needs to know of a model, and nothing about how it runs.

A `Description` is complete: every layer is spelled out with the names of its tensors, as the module tree has them,
and every number is there. A family of models is a function from a `config.json` to a `Description`; whoever writes one
needs no C++. Names that are tied (`StoredModel.aliases`) may be used like any other.

With h the residual stream, D the hidden size, and `norm(x)` = x where a norm is None, a layer computes

    a = attention_output_norm(attention(input_norm(h)))
    sequential:  h = h + residual_scale * a;  h = h + residual_scale * mlp_output_norm(mlp(mlp_norm(h)))
    parallel:    h = h + residual_scale * (a + mlp_output_norm(mlp(mlp_norm(h))))

and one with cross attention, before its MLP,

    h = h + residual_scale * cross(cross_norm(h))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: The gate's or the hidden layer's non-linearity. `gelu_tanh` is what transformers calls gelu_new, gelu_fast and
#: gelu_pytorch_tanh; `quick_gelu` is x * sigmoid(1.702 x); `relu2` is the square of relu.
Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2"]


@dataclass(frozen=True)
class Linear:
    """`x @ W.T + b` for the rows of a tensor [N, K], quantized or kept.

    `rows` are taken in this order, by default all: the query's part of a fused weight is `(range(0, 4096),)`, and one
    that interleaves heads takes a range for each. They select from the bias too. `transposed` is said of a tensor that
    lies as [K, N] when it is kept (transformers' `Conv1D`); a quantized one is always [N, K].
    """

    weight: str
    bias: str | None = None
    rows: tuple[range, ...] = ()
    transposed: bool = False


@dataclass(frozen=True)
class Norm:
    """`rms`: x / sqrt(mean(x^2) + eps) * w; `layer`: (x - mean) / sqrt(var + eps) * w + b.

    With `plus_one` the factor is 1 + w (gemma). Without a weight the factor is 1.
    """

    weight: str | None
    eps: float
    kind: Literal["rms", "layer"] = "rms"
    bias: str | None = None
    plus_one: bool = False


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: pair i of a head turns by position * frequencies[i].

    Pairs are (i, i + n) for n frequencies, or (2 i, 2 i + 1) if `interleaved`; a head's numbers from 2 n on stay as
    they are (partial rotation). Cosines and sines are multiplied by `factor` (yarn, longrope).

    linear, llama3 and yarn are frequencies that do not change. Of the two that do, each call takes one set for all its
    tokens of a sequence, by the length that the sequence has after it:
    `beyond` and `long_frequencies` (longrope): above so many tokens, these frequencies.
    `beyond`, `base` and `growth` (dynamic): above so many tokens L, base * (growth * L / beyond - growth + 1)^(d/(d-2))
    is the base of frequencies base^(-2i/d), d = 2 n.
    """

    frequencies: tuple[float, ...]
    factor: float = 1.0
    interleaved: bool = False
    beyond: int | None = None
    long_frequencies: tuple[float, ...] | None = None
    base: float | None = None
    growth: float | None = None


@dataclass(frozen=True)
class RelativeBias:
    """Numbers that are added to scores by how far a key stands from its query (T5: Raffel et al. 2020, section 2.1).

    `weight` is [buckets, heads]: a row for each bucket of distances. Near distances have a bucket each; those further
    away share buckets that grow by a constant factor up to `max_distance`, and the last holds all beyond. If
    `bidirectional`, half of the buckets are for keys before the query and half for keys after it.
    """

    weight: str
    buckets: int
    max_distance: int
    bidirectional: bool


@dataclass(frozen=True)
class Attention:
    """softmax(scale * q k^T + bias) v; query head i reads key-value head i // (heads / kv_heads).

    `query_norm` and `key_norm` come before the rotation, over each head or, with `norm_span` "projection", over all
    heads at once. A token sees itself and the `window` - 1 tokens before it, or, in an encoder that is not `causal`,
    all. Scores become softcap * tanh(score / softcap) before the bias is added.
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    norm_span: Literal["head", "projection"] = "head"
    window: int | None = None
    softcap: float | None = None
    bias: RelativeBias | None = None
    causal: bool = True


@dataclass(frozen=True)
class CrossAttention:
    """softmax(scale * q k^T) v, where keys and values are made of the encoder's output, all of which a token sees."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    heads: int
    kv_heads: int
    head_dim: int
    scale: float


@dataclass(frozen=True)
class MLP:
    """`down(act(gate(x)) * up(x))`, or `down(act(up(x)))` without a gate."""

    up: Linear
    down: Linear
    gate: Linear | None = None
    activation: Activation = "silu"


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: the `top_k` of softmax(router(x)), weighted by it.

    `gate_up` names a stack [E, 2 I, D], whose first I rows are the gate; `down` one of [E, D, I]. With `normalize` the
    weights of those taken are divided by their sum. `shared` runs for every token, times sigmoid(shared_gate(x)) if
    there is one.
    """

    router: Linear
    gate_up: str
    down: str
    count: int
    top_k: int
    intermediate_size: int
    normalize: bool
    activation: Activation = "silu"
    shared: MLP | None = None
    shared_gate: Linear | None = None


@dataclass(frozen=True)
class Layer:
    """One block; the module's text says what it computes."""

    attention: Attention
    mlp: MLP | Experts
    input_norm: Norm | None = None
    attention_output_norm: Norm | None = None
    cross: CrossAttention | None = None
    cross_norm: Norm | None = None
    mlp_norm: Norm | None = None
    mlp_output_norm: Norm | None = None
    parallel: bool = False
    residual_scale: float = 1.0


@dataclass(frozen=True)
class Positions:
    """Learned positions: row position + `offset` of a tensor [P, D] is added to the embedding."""

    weight: str
    offset: int = 0


@dataclass(frozen=True)
class Encoder:
    """What makes of a source what the decoder's cross attention looks at: embedded as in the decoder, its own layers,
    `final_norm`.
    """

    layers: tuple[Layer, ...]
    final_norm: Norm | None


@dataclass(frozen=True)
class Description:
    """A decoder, with an encoder if it has one. `context` is the largest number of tokens of a sequence, or a source.

    h = embedding_norm(embedding[token] * embedding_scale + positions[position]); the layers;
    logits = head(final_norm(h)) * logit_scale, then logit_softcap * tanh(logits / logit_softcap).
    """

    hidden_size: int
    vocab_size: int
    context: int
    embedding: str
    layers: tuple[Layer, ...]
    head: Linear
    final_norm: Norm | None
    embedding_scale: float = 1.0
    embedding_norm: Norm | None = None
    positions: Positions | None = None
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    encoder: Encoder | None = None
