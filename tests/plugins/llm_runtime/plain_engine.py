"""The engine's contract in plain PyTorch: what a `Description` says, computed in float32 with dense weights.

Tests judge descriptions by it without the native engine, and the native engine by transformers.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from woqfx_llm_runtime.description import Experts
from woqfx_llm_runtime.relative import by_distance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from woqfx_llm_runtime.description import (
        MLP,
        Attention,
        CrossAttention,
        Description,
        Layer,
        Linear,
        Norm,
        RelativeBias,
        Rope,
    )

_ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}


class OutOfMemory(Exception):
    """As the engine's."""


def dense_weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a model of transformers in float32, tied ones under each of their names."""
    return {name: tensor.detach().float() for name, tensor in model.named_parameters(remove_duplicate=False)}


class PlainEngine:
    """As `_core.Engine`; `rows` are the sequences in each call of `forward`, `sources` those in each of `encode`."""

    def __init__(self, description: Description, weights: Mapping[str, Tensor], max_memory: int = 1 << 40) -> None:
        self.description, self.weights, self.max_memory = description, weights, max_memory
        self.vocab_size, self.context = description.vocab_size, description.context
        self.kv_bytes_per_token = 8 * sum(
            layer.attention.kv_heads * layer.attention.head_dim for layer in description.layers
        )
        self._numbers = itertools.count()
        self._cache: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._sources: dict[int, Tensor] = {}  # what the encoder made
        self.rows: list[int] = []
        self.sources: list[int] = []

    @property
    def slots(self) -> list[int]:
        return list(self._cache)

    @property
    def kv_bytes(self) -> int:
        return sum(self.length(slot) for slot in self._cache) * self.kv_bytes_per_token

    def create(self) -> int:
        number = next(self._numbers)
        self._cache[number] = [_nothing(layer) for layer in self.description.layers]
        return number

    def free(self, slot: int) -> None:
        del self._cache[slot]
        self._sources.pop(slot, None)

    def copy(self, slot: int, length: int) -> int:
        number = next(self._numbers)
        self._cache[number] = [(k[:length], v[:length]) for k, v in self._cache[slot]]
        if slot in self._sources:
            self._sources[number] = self._sources[slot]
        return number

    def trim(self, slot: int, length: int) -> None:
        self._cache[slot] = [(k[:length], v[:length]) for k, v in self._cache[slot]]

    def length(self, slot: int) -> int:
        return len(self._cache[slot][0][0])

    def cancel(self) -> None:
        """Nothing runs beside the caller."""

    def source_length(self, slot: int) -> int:
        return len(self._sources.get(slot, ()))

    def encode(self, slots: Sequence[int], counts: Sequence[int], tokens: Any) -> None:
        encoder = self.description.encoder
        assert encoder is not None and not any(slot in self._sources for slot in slots)
        self.sources = [*self.sources, len(slots)]
        for slot, part in zip(slots, torch.as_tensor(tokens).split(list(counts)), strict=True):
            h = self._embed(part, 0)
            for layer in encoder.layers:
                h, _ = self._layer(layer, h, _nothing(layer), 0, None)
            self._sources[slot] = self._norm(encoder.final_norm, h)

    def likeliest(self, logits: Any) -> list[int]:
        found: list[int] = torch.as_tensor(logits).argmax(-1).tolist()
        return found

    def draw(self, draws: Sequence[Any]) -> list[list[int]]:
        """Nothing is certain."""
        return [[-1] * len(rows) for _, rows, _, _ in draws]

    def forward(
        self, slots: Sequence[int], counts: Sequence[int], wanted: Sequence[int], tokens: Any, logits: Any
    ) -> None:
        tokens, logits = torch.as_tensor(tokens), torch.as_tensor(logits)
        assert len(set(slots)) == len(slots) and logits.shape == (sum(wanted), self.vocab_size)
        if self.kv_bytes + sum(counts) * self.kv_bytes_per_token > self.max_memory:
            raise OutOfMemory("keys and values are full")
        self.rows.append(len(slots))
        done = 0
        for slot, part, want in zip(slots, tokens.split(list(counts)), wanted, strict=True):
            assert self.length(slot) + len(part) <= self.context
            logits[done : done + want] = self._run(slot, part)[len(part) - want :]
            done += want

    def _run(self, slot: int, tokens: Tensor) -> Tensor:
        d, past = self.description, self.length(slot)
        assert d.encoder is None or slot in self._sources
        h, cache = self._embed(tokens, past), self._cache[slot]
        for number, layer in enumerate(d.layers):
            h, cache[number] = self._layer(layer, h, cache[number], past, self._sources.get(slot))
        logits = self._linear(d.head, self._norm(d.final_norm, h)) * d.logit_scale
        return logits if d.logit_softcap is None else d.logit_softcap * torch.tanh(logits / d.logit_softcap)

    def _embed(self, tokens: Tensor, past: int) -> Tensor:
        d = self.description
        h = self.weights[d.embedding][tokens] * d.embedding_scale
        if d.positions is not None:
            first = past + d.positions.offset
            h = h + self.weights[d.positions.weight][first : first + len(tokens)]
        return self._norm(d.embedding_norm, h)

    def _layer(
        self, layer: Layer, h: Tensor, cached: tuple[Tensor, Tensor], past: int, source: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        seen, cached = self._attend(layer.attention, self._norm(layer.input_norm, h), cached, past)
        a = layer.residual_scale * self._norm(layer.attention_output_norm, seen)
        base = h if layer.parallel else h + a
        if layer.cross is not None and source is not None:
            base = base + layer.residual_scale * self._cross(layer.cross, self._norm(layer.cross_norm, base), source)
        mlp = self._mlp(layer.mlp, self._norm(layer.mlp_norm, base))
        end = h + a if layer.parallel else base
        return end + layer.residual_scale * self._norm(layer.mlp_output_norm, mlp), cached

    def _cross(self, a: CrossAttention, x: Tensor, source: Tensor) -> Tensor:
        q = self._linear(a.query, x).view(len(x), a.heads, a.head_dim)
        k, v = (
            self._linear(one, source)
            .view(len(source), a.kv_heads, a.head_dim)
            .repeat_interleave(a.heads // a.kv_heads, 1)
            for one in (a.key, a.value)
        )
        weights = (torch.einsum("qhd,khd->hqk", q, k) * a.scale).softmax(-1)
        return self._linear(a.output, torch.einsum("hqk,khd->qhd", weights, v).flatten(1))

    def _bias(self, bias: RelativeBias, distance: Tensor) -> Tensor:
        table = by_distance(bias, self.weights[bias.weight])
        return table[:, distance.clamp(-bias.max_distance, bias.max_distance) + bias.max_distance]

    def _linear(self, linear: Linear, x: Tensor) -> Tensor:
        weight = self.weights[linear.weight]
        if linear.transposed:
            weight = weight.T
        bias = None if linear.bias is None else self.weights[linear.bias]
        if linear.rows:
            chosen = torch.cat([torch.arange(rows.start, rows.stop, rows.step) for rows in linear.rows])
            weight, bias = weight[chosen], None if bias is None else bias[chosen]
        return functional.linear(x, weight, bias)

    def _norm(self, norm: Norm | None, x: Tensor) -> Tensor:
        if norm is None:
            return x
        if norm.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
        if norm.weight is not None:
            x = x * (self.weights[norm.weight] + norm.plus_one)
        return x if norm.bias is None else x + self.weights[norm.bias]

    def _attend(
        self, a: Attention, x: Tensor, cached: tuple[Tensor, Tensor], past: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = (self._linear(one, x) for one in (a.query, a.key, a.value))
        if a.norm_span == "projection":
            q, k = self._norm(a.query_norm, q), self._norm(a.key_norm, k)
        q, k, v = (one.view(len(x), -1, a.head_dim) for one in (q, k, v))
        if a.norm_span == "head":
            q, k = self._norm(a.query_norm, q), self._norm(a.key_norm, k)
        if a.rope is not None:
            q, k = (_rotate(a.rope, one, past) for one in (q, k))
        keys, values = torch.cat([cached[0], k]), torch.cat([cached[1], v])
        shared = a.heads // a.kv_heads
        scores = torch.einsum("qhd,khd->hqk", q, keys.repeat_interleave(shared, 1)) * a.scale
        if a.softcap is not None:
            scores = a.softcap * torch.tanh(scores / a.softcap)
        distance = torch.arange(past, past + len(x))[:, None] - torch.arange(len(keys))[None]
        if a.bias is not None:
            scores = scores + self._bias(a.bias, -distance)
        hidden = ((distance < 0) & a.causal) | (distance >= (a.window or math.inf))
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", weights, values.repeat_interleave(shared, 1))
        return self._linear(a.output, mixed.flatten(1)), (keys, values)

    def _mlp(self, mlp: MLP | Experts, x: Tensor) -> Tensor:
        if isinstance(mlp, Experts):
            return self._experts(mlp, x)
        act = _ACTIVATIONS[mlp.activation]
        inner = self._linear(mlp.up, x)
        return self._linear(mlp.down, act(inner) if mlp.gate is None else act(self._linear(mlp.gate, x)) * inner)

    def _experts(self, mlp: Experts, x: Tensor) -> Tensor:
        shares, chosen = self._linear(mlp.router, x).softmax(-1).topk(mlp.top_k)
        if mlp.normalize:
            shares = shares / shares.sum(-1, keepdim=True)
        result = torch.zeros_like(x)
        for row, (weights, experts) in enumerate(zip(shares, chosen, strict=True)):
            for weight, expert in zip(weights, experts, strict=True):
                gate, up = (self.weights[mlp.gate_up][expert] @ x[row]).chunk(2)
                inner = _ACTIVATIONS[mlp.activation](gate) * up
                result[row] += weight * (self.weights[mlp.down][expert] @ inner)
        return result


def _nothing(layer: Layer) -> tuple[Tensor, Tensor]:
    return (torch.empty(0, layer.attention.kv_heads, layer.attention.head_dim),) * 2


def _rotate(rope: Rope, x: Tensor, past: int) -> Tensor:
    frequencies, total = torch.tensor(rope.frequencies), past + len(x)
    if rope.beyond is not None and total > rope.beyond:
        if rope.long_frequencies is not None:
            frequencies = torch.tensor(rope.long_frequencies)
        else:
            assert rope.base is not None and rope.growth is not None
            d = 2 * len(frequencies)
            base = rope.base * (rope.growth * total / rope.beyond - rope.growth + 1) ** (d / (d - 2))
            frequencies = base ** -(torch.arange(0, d, 2) / d)
    angles = torch.arange(past, total)[:, None] * frequencies
    cos, sin = (f(angles)[:, None] * rope.factor for f in (torch.cos, torch.sin))
    n = len(frequencies)
    one, other, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    if rope.interleaved:
        one, other = x[..., 0 : 2 * n : 2], x[..., 1 : 2 * n : 2]
        turned = torch.stack([one * cos - other * sin, other * cos + one * sin], -1).flatten(-2)
        return torch.cat([turned, rest], -1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin, rest], -1)
