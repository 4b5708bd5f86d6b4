"""From a checkpoint to a running model, and the proof that it computes what it should."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from woqfx import StoredModel, WoqfxError, assemble, registry
from woqfx_llm_runtime import _core
from woqfx_llm_runtime.causal_lm import RuntimeModel
from woqfx_llm_runtime.lowering import EngineOptions, build
from woqfx_llm_runtime.requests.scheduler import Scheduler
from woqfx_llm_runtime.seq2seq import RuntimeSeq2Seq

if TYPE_CHECKING:
    from woqfx_llm_runtime.description import Description

#: The mean divergence KL(torch_cpu || runtime) in nats that `verify` accepts. Rounding in other orders, and a head in 8
#: bits, give a thousandth of it at most on real models; another arithmetic gives many times as much.
MOST_DIVERGENCE = 0.02
_VERIFIED_TOKENS = 48


def load(
    stored: StoredModel, skeleton: nn.Module, description: Description, options: EngineOptions, *, verify: bool
) -> RuntimeModel:
    """Build the engine for a checkpoint. Raises `CheckpointError`, and `WoqfxError` if it does not verify."""
    engine = build(stored, description, options)
    ropes = [layer.attention.rope for layer in description.layers]
    limits = [rope.beyond for rope in ropes if rope is not None and rope.beyond is not None]
    scheduler = Scheduler(
        engine,
        by_length=min(limits, default=None),
        restarts=any(rope is not None and rope.long_frequencies is not None for rope in ropes),
        out_of_memory=_core.OutOfMemory,
        cancelled=_core.Cancelled,
    )
    config: Any = skeleton.config
    kind = RuntimeModel if description.encoder is None else RuntimeSeq2Seq
    model = kind(config, scheduler, summary(engine, description, options))
    if verify:
        check(model, stored, skeleton)
    return model


def summary(engine: _core.Engine, description: Description, options: EngineOptions) -> str:
    """What `print(model)` says."""
    encoder = "" if description.encoder is None else f"{len(description.encoder.layers)} layers of an encoder and "
    return (
        f"{encoder}{len(description.layers)} layers, {engine.weight_bytes / 1e6:.0f} MB of weights, keys and values in "
        f"{options.kv}, context {engine.context}, {_core.available_isa()}"
    )


def check(model: RuntimeModel, stored: StoredModel, skeleton: nn.Module) -> None:
    """Compare the logits of a few tokens with those of backend torch_cpu."""
    twin: Any = assemble(stored, registry().backend("torch_cpu"), copy.deepcopy(skeleton)).float()
    count = min(_VERIFIED_TOKENS, model.engine.context)
    tokens = (torch.arange(1, count + 1) * 7919 % model.engine.vocab_size)[None]
    given = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if isinstance(model, RuntimeSeq2Seq) else {})
    with torch.no_grad():
        ours, theirs = (torch.log_softmax(one(**given).logits.double(), -1) for one in (model, twin))
    divergence = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    if not divergence <= MOST_DIVERGENCE:
        raise WoqfxError(
            f"{stored.label}: the runtime's predictions differ from those of backend torch_cpu by {divergence:.3g} "
            f"nats on {count} tokens, where {MOST_DIVERGENCE} is the most that rounding explains: use torch_cpu, and "
            "report it"
        )
