"""From a checkpoint and the description of its architecture to an engine."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from woqfx import StoredModel
from woqfx.errors import CheckpointError
from woqfx_llm_runtime import _core, description
from woqfx_llm_runtime.description import Description
from woqfx_llm_runtime.packing import HeadInEightBits
from woqfx_llm_runtime.relative import by_distance
from woqfx_llm_runtime.tensors import Tensors
from woqfx_native.cache import PackCache
from woqfx_native.ops import threads

T = TypeVar("T")

_KV = {"fp32": _core.KVType.f32, "fp16": _core.KVType.f16, "bf16": _core.KVType.bf16, "int8": _core.KVType.int8}
#: Instruction sets with products of pairs of bfloat16.
_PAIRS = ("avx512_bf16", "amx")


@dataclass(frozen=True)
class EngineOptions:
    """What a user may choose.

    `kv` is what keys and values are held in; `max_memory` bounds what they take together, in bytes, by default half of
    the memory that is free. A `head` that the checkpoint keeps is held in 8 bits, or "keep" as it is. `pack_cache` is a
    folder that holds packed weights between runs, if any. `threads` 0 means torch's number.
    """

    kv: Literal["fp32", "fp16", "bf16", "int8"] = "fp16"
    max_memory: int | None = None
    head: Literal["int8", "keep"] = "int8"
    pack_cache: str = ""
    threads: int = 0


def build(stored: StoredModel, described: Description, options: EngineOptions | None = None) -> _core.Engine:
    """An engine for a checkpoint.

    Raises `CheckpointError` if a tensor that the description names is not there or has another shape, or if one is
    there that it does not name; `_core.Error` if sizes do not fit each other; `WoqfxError` for a pack cache that cannot
    be written.
    """
    options = options or EngineOptions()
    cache = PackCache(options.pack_cache, stored) if options.pack_cache else None
    with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="woqfx-build") as pool:
        model = _Lowering(Tensors(stored, cache), pool).model(described, options)
    memory = _free_memory() // 2 if options.max_memory is None else options.max_memory
    if memory < 0:
        raise CheckpointError(f"max_memory is {memory}: give a number of bytes, 0 or more")
    return _core.Engine(model, _KV[options.kv], memory, options.threads or threads())


def usual_kv(stored: StoredModel) -> Literal["fp16", "bf16"]:
    """What keys and values of a checkpoint are held in if nobody chooses.

    Both take 2 bytes. fp16 is the nearer; bf16 is for CPUs that multiply pairs of it in one instruction, and for models
    that round what goes into each product anyway.
    """
    exact = any(weight.scheme.compute_dtype == "fp32" for weight in stored.weights.values())
    return "bf16" if stored.weights and not exact and _core.available_isa() in _PAIRS else "fp16"


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class _Lowering:
    """Builds the engine's terms, each from its counterpart in `description`.

    What is large is built in the pool's threads: one reads while another packs.
    """

    def __init__(self, tensors: Tensors, pool: ThreadPoolExecutor) -> None:
        self.tensors, self.pool = tensors, pool
        self.stored = tensors.stored
        self.ropes: list[description.Rope] = []
        self.biases: list[description.RelativeBias] = []

    def model(self, d: Description, options: EngineOptions) -> _core.Model:
        made = _core.Model()
        made.hidden, made.vocabulary, made.context = d.hidden_size, d.vocab_size, d.context
        in_eight_bits = HeadInEightBits(self._usual_compute()) if options.head == "int8" else None
        head = self.pool.submit(self.tensors.projection, [d.head], in_eight_bits)
        embedding = self.pool.submit(self.tensors.table, d.embedding)
        made.embedding_scale = d.embedding_scale
        if d.positions is not None:
            made.positions, made.position_offset = self.tensors.table(d.positions.weight), d.positions.offset
        made.embedding_norm, made.final_norm = self.norm(d.embedding_norm), self.norm(d.final_norm)
        attentions = [layer.attention for layer in (*d.layers, *(d.encoder.layers if d.encoder else ()))]
        self.ropes = _distinct(attention.rope for attention in attentions)
        self.biases = _distinct(attention.bias for attention in attentions)
        made.ropes, made.biases = [_rope(rope) for rope in self.ropes], [self.bias(bias) for bias in self.biases]
        made.layers = self.layers(d.layers)
        if d.encoder is not None:
            encoder = _core.Encoder()
            encoder.layers, encoder.final_norm = self.layers(d.encoder.layers), self.norm(d.encoder.final_norm)
            made.encoder = encoder
        made.head, made.embedding = head.result(), embedding.result()
        made.logit_scale, made.logit_softcap = d.logit_scale, d.logit_softcap or 0.0
        if unused := self.tensors.unused():
            raise CheckpointError(
                f"{self.stored.label} holds {len(unused)} tensors that the description of its architecture does not "
                f"name, {unused[0]} for one: the runtime would give wrong answers; use backend torch_cpu"
            )
        return made

    def _usual_compute(self) -> str:
        counts = Counter(weight.scheme.compute_dtype for weight in self.stored.weights.values())
        return counts.most_common(1)[0][0] if counts else "fp32"

    def layers(self, described: Sequence[description.Layer]) -> list[_core.Layer]:
        return list(self.pool.map(self.layer, described))

    def layer(self, d: description.Layer) -> _core.Layer:
        made = _core.Layer()
        made.attention = self.attention(d.attention)
        if d.cross is not None:
            made.cross, made.cross_norm = self.cross(d.cross), self.norm(d.cross_norm)
        if isinstance(d.mlp, description.Experts):
            made.experts = self.experts(d.mlp)
        else:
            made.mlp = self.mlp(d.mlp)
        made.input_norm, made.attention_output_norm = self.norm(d.input_norm), self.norm(d.attention_output_norm)
        made.mlp_norm, made.mlp_output_norm = self.norm(d.mlp_norm), self.norm(d.mlp_output_norm)
        made.parallel, made.residual_scale = d.parallel, d.residual_scale
        return made

    def attention(self, d: description.Attention) -> _core.Attention:
        made = _core.Attention()
        made.inputs = self.tensors.projection([d.query, d.key, d.value])
        made.output = self.tensors.projection([d.output])
        made.heads, made.kv_heads, made.head_dim = d.heads, d.kv_heads, d.head_dim
        made.scale, made.softcap, made.window = d.scale, d.softcap or 0.0, d.window or 0
        if d.rope is not None:
            made.rope = self.ropes.index(d.rope)
        if d.bias is not None:
            made.bias = self.biases.index(d.bias)
        made.causal = d.causal
        made.query_norm, made.key_norm = self.norm(d.query_norm), self.norm(d.key_norm)
        made.norm_all_heads = d.norm_span == "projection"
        return made

    def cross(self, d: description.CrossAttention) -> _core.CrossAttention:
        made = _core.CrossAttention()
        made.query = self.tensors.projection([d.query])
        made.memory = self.tensors.projection([d.key, d.value])
        made.output = self.tensors.projection([d.output])
        made.heads, made.kv_heads, made.head_dim, made.scale = d.heads, d.kv_heads, d.head_dim, d.scale
        return made

    def bias(self, d: description.RelativeBias) -> _core.RelativeBias:
        table = self.tensors.read(d.weight)
        if len(table.shape) != 2 or table.shape[0] != d.buckets:
            raise CheckpointError(
                f"{self.stored.label}: {d.weight} has shape {list(table.shape)}, where its architecture has a row for "
                f"each of {d.buckets} buckets"
            )
        values = by_distance(d, table if isinstance(table, Tensor) else table.dequantize())
        return _core.RelativeBias(len(values), d.max_distance, values.flatten().tolist())

    def mlp(self, d: description.MLP) -> _core.MLP:
        made = _core.MLP()
        made.gated = d.gate is not None
        made.inputs = self.tensors.projection([d.up] if d.gate is None else [d.gate, d.up])
        made.output = self.tensors.projection([d.down])
        made.activation = _core.Activation[d.activation]
        return made

    def experts(self, d: description.Experts) -> _core.Experts:
        made = _core.Experts()
        made.router = self.tensors.projection([d.router])
        pairs = zip(self.tensors.stack(d.gate_up, d.count), self.tensors.stack(d.down, d.count), strict=True)
        experts = []
        for gate_up, down in pairs:
            if (gate_up.n, down.k) != (2 * d.intermediate_size, d.intermediate_size):
                raise CheckpointError(
                    f"{self.stored.label}: {d.gate_up} gives {gate_up.n} numbers and {d.down} takes {down.k}, where "
                    f"the intermediate size is {d.intermediate_size}"
                )
            expert = _core.MLP()
            expert.inputs, expert.output = _core.Projection([gate_up], []), _core.Projection([down], [])
            expert.activation = _core.Activation[d.activation]
            experts.append(expert)
        made.experts = experts
        made.top_k, made.normalize = d.top_k, d.normalize
        if d.shared is not None:
            made.shared = self.mlp(d.shared)
        if d.shared_gate is not None:
            made.shared_gate = self.tensors.projection([d.shared_gate])
        return made

    def norm(self, d: description.Norm | None) -> _core.Norm | None:
        if d is None:
            return None
        made = _core.Norm()
        made.centered, made.eps = d.kind == "layer", d.eps
        if d.weight is not None:
            weight = self.tensors.vector(d.weight)
            made.weight = [1.0 + w for w in weight] if d.plus_one else weight
        if d.bias is not None:
            made.bias = self.tensors.vector(d.bias)
        return made


def _distinct(terms: Iterable[T | None]) -> list[T]:
    found: list[T] = []
    for term in terms:
        if term is not None and term not in found:
            found.append(term)
    return found


def _rope(d: description.Rope) -> _core.Rope:
    made = _core.Rope()
    made.frequencies, made.factor, made.interleaved = list(d.frequencies), d.factor, d.interleaved
    made.beyond = d.beyond or 0
    if d.long_frequencies is not None:
        made.long_frequencies = list(d.long_frequencies)
    if d.base is not None and d.growth is not None:
        made.base, made.growth = d.base, d.growth
    return made
