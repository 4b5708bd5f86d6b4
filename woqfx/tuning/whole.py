"""A checkpoint as one block that gives its divergence from the model that it was made from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from woqfx.blocks.block import Block, Call
from woqfx.blocks.conductor import as_float
from woqfx.blocks.survey import load_float
from woqfx.errors import PlanError
from woqfx.format import StoredModel
from woqfx.layers import find_layers
from woqfx.qtensor import QTensor
from woqfx.source import Source
from woqfx.tuning.divergence import Divergence

#: Before the model's own names in those of the block.
PREFIX = "model."
#: Differences between two models that are told; there may be thousands.
_TOLD = 5


@dataclass(frozen=True, eq=False)
class Whole:
    """A whole model: `block`, whose calls are sequences of tokens, and its `quantized` weights, by the block's names.

    `stored` gives the types in which vectors are stored.
    """

    block: Block
    quantized: Mapping[str, QTensor]
    stored: Mapping[str, torch.dtype]

    def divergence(self, number: int, parameters: Mapping[str, Tensor]) -> Tensor:
        """KL(original || model) of one call in nats per token, with these parameters as they would be stored."""
        rounded = {
            name: tensor.to(self.stored[name]).float() if name in self.stored else tensor
            for name, tensor in parameters.items()
        }
        return self.block.run(self.block.calls[number], rounded)


def whole(stored: StoredModel, source: Source, rows: Sequence[Tensor], products: torch.dtype, workers: int) -> Whole:
    """The checkpoint `stored`, whose divergence from `source` on `rows` int64 [1, T] is looked at."""
    layers = {layer.weight: layer for layer in find_layers(source.skeleton)}
    original = load_float(source)
    # A tree of its own around the same tensors, all of which are replaced whenever it runs.
    model = copy.deepcopy(original, {id(tensor): tensor for tensor in original.parameters()})
    quantized = {PREFIX + name: stored.read_weight(name) for name in stored.weights}
    kept = {PREFIX + name: stored.read_kept(name) for name, _ in model.named_parameters() if name in stored.kept}
    block = Block(
        stored.label,
        Divergence(model, original, products),
        {},
        {name: as_float(tensor) for name, tensor in kept.items()},
        [Call((row,), {}) for row in rows],
        (),
        transposed=frozenset(PREFIX + name for name in stored.weights if layers[name].transposed),
        workers=workers,
    )
    return Whole(block, quantized, {name: tensor.dtype for name, tensor in kept.items() if tensor.dim() == 1})


def check_alike(stored: StoredModel, source: Source) -> None:
    """Raise `PlanError` unless `source` has all that is stored, in the same shapes."""
    layers = {layer.weight: layer for layer in find_layers(source.skeleton)}
    problems = []
    for name, weight in stored.weights.items():
        if name not in layers:
            problems.append(f"{name} of {stored.label} is not in {source.label}")
        elif layers[name].shape != tuple(weight.shape):
            problems.append(
                f"{name} is {list(weight.shape)} in {stored.label}, and {list(layers[name].shape)} in {source.label}"
            )
    for name, info in stored.kept.items():
        if name not in source.tensors:
            problems.append(f"{name} of {stored.label} is not in {source.label}")
        elif source.tensors[name].shape != tuple(info.shape):
            found = list(source.tensors[name].shape)
            problems.append(f"{name} is {list(info.shape)} in {stored.label}, and {found} in {source.label}")
    if problems:
        remedy = f"give the model that {stored.label} was made from"
        raise PlanError([f"{problem}: {remedy}" for problem in problems[:_TOLD]])


def check_learnable(stored: StoredModel) -> None:
    """Raise `PlanError` if `stored` holds nothing that tuning moves."""
    vectors = any(len(info.shape) == 1 for info in stored.kept.values())
    scales = any(
        len(weight.shape) == 2 and not weight.offsets and not weight.scheme.double_quant
        for weight in stored.weights.values()
    )
    if not vectors and not scales:
        raise PlanError(
            [
                f"{stored.label} has nothing to tune, neither norms nor biases, and all its scales stay as they are: "
                "quantize without double_quant (--double-quant)"
            ]
        )
