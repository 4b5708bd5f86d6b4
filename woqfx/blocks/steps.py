"""Quantizing one block: rescale, round in stages, refine; and what there is to tell of each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from woqfx.algorithm import Algorithm, Fold, Layer, Statistics
from woqfx.blocks.block import Block, Feed
from woqfx.blocks.checking import check_refined, check_rounded
from woqfx.blocks.composition import Composition, blamed, titled
from woqfx.blocks.facts import Notes, clean, layer_errors, some_rows
from woqfx.blocks.feeds import find_feeds
from woqfx.blocks.importance import token_importance
from woqfx.blocks.rescaling import try_fold
from woqfx.blocks.statistics import Gathered, Group, collect, find_groups, moments_size
from woqfx.errors import PluginError
from woqfx.nearest import quantize_nearest
from woqfx.qtensor import QTensor

#: Bytes of second moments that are gathered at a time, unless those of one weight are more.
_MOMENTS = 1 << 29
#: An expert that saw fewer tokens is rounded to nearest: they would say more of chance than of its inputs.
MIN_TOKENS = 32


@dataclass
class QuantizedBlock:
    """What has become of a block: codes, other parameters that changed (float32), and facts for the report.

    `rescaled` are the float weights that were rounded.
    """

    weights: dict[str, QTensor]
    rescaled: Mapping[str, Tensor]
    changed: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def replacements(self) -> dict[str, Tensor]:
        """What the quantized block computes with in place of the float parameters, float32."""
        return {**self.changed, **{name: q.dequantize() for name, q in self.weights.items()}}


@dataclass(frozen=True)
class Loaded:
    """A block's weights, float32. `kept` gives the type of each parameter that is written as it is.

    `parameters` and `layers` change when a fold is used; the block is a view of them, and shows it.
    """

    name: str
    module: nn.Module
    parameters: dict[str, Tensor]
    layers: dict[str, Layer]
    kept: Mapping[str, torch.dtype]
    transposed: frozenset[str]

    def block(self, workers: int) -> Block:
        """The block, without data yet."""
        parameters, layers = MappingProxyType(self.parameters), MappingProxyType(self.layers)
        return Block(self.name, self.module, layers, parameters, (), (), transposed=self.transposed, workers=workers)


class BlockWork:
    """The steps of one block, `loaded` and with its data.

    `probe` is the same block with one short call, for what needs no more: to find what feeds what, to try folds, to
    measure the error behind each step. `like` are the feeds of an earlier block of the same class, and `feeds` become
    this one's. `surveyed` is what each part's survey of the whole model gave, by the part's name.
    """

    def __init__(
        self,
        loaded: Loaded,
        block: Block,
        probe: Block,
        composition: Composition,
        like: Sequence[Feed] = (),
        surveyed: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self._composition, self._kept = composition, loaded.kept
        self._surveyed = surveyed or {}
        self.feeds = tuple(like)
        self._notes = Notes()
        self._block, self._probe = replace(block, note=self._notes.of_block), probe
        self._parameters, self._layers = loaded.parameters, loaded.layers
        self._before = {name: some_rows(layer.weight).clone() for name, layer in self._layers.items()}
        self._as_stored = {name: self._parameters[name] for name in self._kept}
        self._columns: dict[str, Tensor] = {}  # what each weight's input channels were multiplied by
        self._groups = find_groups(probe, list(self._layers))
        order = [name for group in self._groups for name in group.names]
        self._layers |= {name: self._layers.pop(name) for name in order}
        self._errors: dict[str, float] = {}
        self._folds: list[dict[str, Any]] = []

    def quantize(self) -> QuantizedBlock:
        """All steps. Raises `PluginError` for an algorithm that fails or gives what cannot be used."""
        self._measure("nearest", {name: _nearest(layer).dequantize() for name, layer in self._layers.items()})
        if self._composition.transformers:
            self._rescale()
            self._measure("transform", {name: _nearest(layer).dequantize() for name, layer in self._layers.items()})
        rescaled = {name: layer.weight for name, layer in self._layers.items()}
        result = QuantizedBlock(self._round(), rescaled, self._changed())
        self._measure("round", result.replacements())
        if self._composition.refiners:
            self._refine(result)
            self._measure("refine", result.replacements())
        result.facts = {"error": self._errors, "feeds": self._folds, **self._notes.to_json()}
        return result

    def _changed(self) -> dict[str, Tensor]:
        """What folds have made of the parameters that are kept."""
        now = self._parameters
        return {name: now[name] for name, before in self._as_stored.items() if now[name] is not before}

    def _measure(self, step: str, weights: Mapping[str, Tensor]) -> None:
        self._errors[step] = clean(self._probe.error(weights))

    # -- rescaling -------------------------------------------------------------------------------

    def _rescale(self) -> None:
        self.feeds = find_feeds(self._probe, self.feeds)
        block = replace(self._block, feeds=self.feeds)
        for part in self._composition.transformers:
            block = replace(block, surveyed=self._surveyed.get(part.name, {}))
            with blamed(part, block.name):
                for fold in part.transform(block):
                    self._fold(block, fold, part)

    def _fold(self, block: Block, fold: Any, part: Algorithm) -> None:
        who = f"{block.name}: {titled(part)}"
        if not isinstance(fold, Fold) or not any(fold.feed is feed for feed in block.feeds):
            raise PluginError(f"{who} gave {type(fold).__name__}, not a Fold of a feed of the block")
        tried = try_fold(self._probe, fold, self._kept, who)
        refused = isinstance(tried, str)
        self._folds.append(
            {
                "name": fold.feed.name,
                "by": part.name,
                "producers": list(fold.feed.producers),
                "consumers": list(fold.feed.consumers),
                "used": not refused,
                **({"reason": tried} if refused else {}),
                **clean(fold.facts),
            }
        )
        if isinstance(tried, str):
            return
        changed, scale = tried
        for name, tensor in changed.items():
            self._parameters[name] = tensor
            if name in self._layers:
                self._layers[name] = replace(self._layers[name], weight=tensor)
        multiplied = {}
        for name, index in fold.feed.consumers.items():
            picked = torch.where(index < 0, torch.ones(()), scale[index.clamp(min=0)])
            self._columns[name] = self._columns.get(name, torch.ones(())) * picked
            multiplied[name] = picked
        self._block.gathered.rescale(multiplied)

    # -- rounding --------------------------------------------------------------------------------

    def _round(self) -> dict[str, QTensor]:
        rounder, done = self._composition.rounder, dict[str, QTensor]()
        importance = None
        if self._composition.rounds_with_data and rounder.weighs_tokens:
            # Which tokens reach an expert changes once weights before it are rounded: there, all count alike.
            names = [name for group in self._groups if group.uses for name in group.names]
            importance = token_importance(self._block, names)
        for stage in self._stages():
            inputs = {}
            if self._composition.rounds_with_data and (rounder.sequential or importance):
                before = {name: q.dequantize() for name, q in done.items()} if rounder.sequential else {}
                inputs = collect(self._block, stage, before, importance)
            elif self._composition.rounds_with_data:
                inputs = self._block.gathered.get(self._block, stage)
            done |= self._round_stage([name for group in stage for name in group.names], inputs)
        return {name: done[name] for group in self._groups for name in group.names}

    def _stages(self) -> Iterator[tuple[Group, ...]]:
        """What is rounded together: one group, if each is to see what those before it became; or what memory holds."""
        if self._composition.rounder.sequential:
            yield from ((group,) for group in self._groups)
            return
        stage: list[Group] = []
        size = 0
        for group in self._groups:
            moments = moments_size(self._block, group.names[0]) * (1 + self._block.workers)
            if stage and size + moments > _MOMENTS:
                yield tuple(stage)
                stage, size = [], 0
            stage.append(group)
            size += moments
        if stage:
            yield tuple(stage)

    def _round_stage(self, names: Sequence[str], inputs: Mapping[str, list[Statistics]]) -> dict[str, QTensor]:
        layers = [one for name in names for one in self._single_layers(name, inputs.get(name))]
        rounded = iter(self._block.map(self._round_one, layers))
        done = {}
        for name in names:
            layer = self._layers[name]
            if layer.weight.ndim == 2 or name not in inputs:
                done[name] = next(rounded)
            else:
                experts = [next(rounded) for _ in layer.weight]
                done[name] = QTensor.stack(experts, layer.scheme)
            seen = inputs.get(name)
            self._notes.errors(name, layer_errors(self._before[name], layer, done[name], seen, self._columns.get(name)))
        return done

    def _single_layers(self, name: str, inputs: list[Statistics] | None) -> Iterator[Layer]:
        """The layer, or each expert of a stack, with its inputs."""
        layer = self._layers[name]
        if inputs is None:
            yield replace(layer, note=self._notes.of_layer(name))
        elif layer.weight.ndim == 2:
            yield replace(layer, inputs=inputs[0], note=self._notes.of_layer(name))
        else:
            # Scales are compressed once all experts have theirs: their blocks reach across experts.
            plain = replace(layer.scheme, double_quant=False)
            for number, (weight, seen) in enumerate(zip(layer.weight, inputs, strict=True)):
                note = self._notes.of_expert(name, number, seen.tokens)
                yield Layer(f"{layer.name}[{number}]", weight, plain, layer.dtype, seen, note)

    def _round_one(self, layer: Layer) -> QTensor:
        rounder = self._composition.rounder
        if layer.inputs is not None and layer.inputs.tokens < MIN_TOKENS:
            layer.note(fallback=f"rounded to nearest: {layer.inputs.tokens} tokens reached it, fewer than {MIN_TOKENS}")
            q = _nearest(layer)
        else:
            with torch.no_grad(), blamed(rounder, layer.name):
                q = rounder.round(layer)
            check_rounded(f"{layer.name}: {titled(rounder)}", q, layer.scheme, tuple(layer.weight.shape))
        return q.ordered() if rounder.ordered else q

    # -- refining --------------------------------------------------------------------------------

    def _refine(self, result: QuantizedBlock) -> None:
        for part in self._composition.refiners:
            parameters = MappingProxyType({**self._parameters, **result.changed})
            block = replace(self._block, parameters=parameters, gathered=Gathered())
            with blamed(part, block.name):
                better = dict(part.refine(block, MappingProxyType(result.weights)))
            for name, value in better.items():
                check_refined(f"{block.name}: {titled(part)}", name, value, self._parameters, self._layers)
                if isinstance(value, QTensor):
                    result.weights[name] = value
                else:
                    result.changed[name] = value.detach().to(self._kept[name]).float()


def _nearest(layer: Layer) -> QTensor:
    return quantize_nearest(layer.weight, layer.dtype, layer.scheme, name=layer.name)
