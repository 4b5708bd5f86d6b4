"""The whole model as one block, for an algorithm that looks at it before it goes block by block.

Its calls are the calibration batches, and what it gives for one is the mean cross-entropy of the next token, a number:
of a language model's own objective, differentiable in every weight. It is in memory in float32, and in another copy for
whatever the algorithm puts in place of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from woqfx.algorithm import Layer
from woqfx.blocks.block import Block, Call, Feed
from woqfx.blocks.conductor import as_float, hollow_copy, model_inputs
from woqfx.blocks.feeds import find_feeds
from woqfx.blocks.finding import BlockInfo
from woqfx.errors import SourceError
from woqfx.planned import Plan
from woqfx.plugins import registry
from woqfx.skeleton import named_state
from woqfx.source import Source

T = TypeVar("T")

_PREFIX = "model."


class NextToken(nn.Module):
    """A language model that gives, for tokens int64 [B, T], its mean cross-entropy: in nats per token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """An encoder-decoder is to give the tokens back; any other model, each token from those before it."""
        inputs = model_inputs(self.model, tokens)
        output = self.model(**inputs)
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if logits is None:
            raise SourceError(f"{type(self.model).__name__} gives no logits: there is no next token to be wrong about")
        if "decoder_input_ids" not in inputs:
            logits, tokens = logits[:, :-1], tokens[:, 1:]
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def whole_model(source: Source, plan: Plan, batches: Sequence[Tensor], workers: int) -> Block:
    """The model of a source as a block: `run` gives its loss, `layers` are the weights to quantize in its blocks.

    Names are the model's own behind `model.`; each feed is named as in its block, behind the block's name. The last of
    the batches is the short one on which structure is looked at.
    """
    model = load_float(source)
    parameters, layers, transposed = {}, {}, set()
    planned = {entry.layer.weight: entry for entry in plan.layers}
    for name, parameter in model.named_parameters():
        entry = planned.get(name)
        tensor = parameter.detach() if entry is None else entry.layer.logical(parameter.detach())
        parameters[_PREFIX + name] = tensor
        if entry is not None and entry.layer.transposed:
            transposed.add(_PREFIX + name)
        if entry is not None and entry.scheme is not None and any(info.holds(name) for info in plan.blocks):
            grid = registry().dtype(entry.scheme.dtype)
            layers[_PREFIX + name] = Layer(entry.layer.name, tensor, entry.scheme, grid)
    calls = [Call((tokens,), {}) for tokens in batches[:-1]]
    whole = NextToken(model)
    return Block(
        source.label,
        whole,
        layers,
        parameters,
        calls,
        (),
        feeds=_feeds(model, plan.blocks, layers, parameters, transposed, batches[-1]),
        transposed=frozenset(transposed),
        workers=workers,
    )


def load_float(source: Source) -> nn.Module:
    """The source's model in float32. Tensors that are tied stay so."""
    model = hollow_copy(source)
    read: dict[str, Any] = {}
    for name, held in named_state(model):
        if not held.is_meta:
            continue
        stored = source.aliases.get(name, name)
        if stored not in read:
            tensor = as_float(source.read(stored))
            read[stored] = nn.Parameter(tensor, requires_grad=False) if isinstance(held, nn.Parameter) else tensor
        owner, _, key = name.rpartition(".")
        setattr(model.get_submodule(owner), key, read[stored])
    return model


def _feeds(
    model: nn.Module,
    blocks: Sequence[BlockInfo],
    layers: Mapping[str, Layer],
    parameters: Mapping[str, Tensor],
    transposed: set[str],
    tokens: Tensor,
) -> tuple[Feed, ...]:
    """Those of all blocks, under the model's names."""
    calls = _calls(model, blocks, tokens)
    known: dict[type[Any], tuple[Feed, ...]] = {}
    found = []
    for info in blocks:
        if info.name not in calls:
            continue
        prefix, module = f"{_PREFIX}{info.name}.", model.get_submodule(info.name)
        block = Block(
            info.name,
            module,
            _inside(prefix, layers),
            _inside(prefix, parameters),
            [calls[info.name]],
            (),
            transposed=frozenset(_inside(prefix, dict.fromkeys(transposed))),
        )
        known[type(module)] = find_feeds(block, known.get(type(module), ()))
        found += [_renamed(feed, info.name, prefix) for feed in known[type(module)]]
    return tuple(found)


def _calls(model: nn.Module, blocks: Sequence[BlockInfo], tokens: Tensor) -> dict[str, Call]:
    """How the model calls each of its blocks."""
    calls: dict[str, Call] = {}

    def keep(name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        calls[name] = Call(args, kwargs)

    handles = [
        model.get_submodule(info.name).register_forward_pre_hook(partial(keep, info.name), with_kwargs=True)
        for info in blocks
    ]
    with torch.no_grad():
        model(**model_inputs(model, tokens))
    for handle in handles:
        handle.remove()
    return calls


def _inside(prefix: str, whole: Mapping[str, T]) -> dict[str, T]:
    return {name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)}


def _renamed(feed: Feed, block: str, prefix: str) -> Feed:
    return replace(
        feed,
        name=f"{block}.{feed.name}",
        producers={prefix + name: index for name, index in feed.producers.items()},
        consumers={prefix + name: index for name, index in feed.consumers.items()},
        one_plus=frozenset(prefix + name for name in feed.one_plus),
    )
