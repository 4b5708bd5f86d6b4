"""The weights that one feed reaches, with what the data shows of their inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from woqfx import Block, DType, Feed, Scheme, Statistics, split_groups


@dataclass(frozen=True, eq=False)
class FedWeight:
    """A weight float32 [N, K], or one expert of a stack: `index` [K] is the scale that each input channel takes."""

    weight: Tensor
    index: Tensor
    dtype: DType
    scheme: Scheme
    inputs: Statistics


def fed_weights(block: Block, feed: Feed, inputs: Mapping[str, Sequence[Statistics]]) -> list[FedWeight]:
    """What a feed reaches of the weights to quantize. Experts that no token reached are left out."""
    found = []
    for name, index in feed.consumers.items():
        if name not in block.layers:
            continue
        layer, k = block.layers[name], index.shape[-1]
        weights = layer.weight.float().reshape(-1, *layer.weight.shape[-2:])
        for weight, own, seen in zip(weights, index.reshape(-1, k), inputs[name], strict=True):
            if seen.tokens:
                found.append(FedWeight(weight, own, layer.dtype, layer.scheme, seen))
    return found


def input_magnitudes(fed: Sequence[FedWeight], size: int) -> Tensor:
    """Mean |x| of the channels that each scale multiplies, over all tokens: float32 [size]."""
    return _pooled(((one.index, one.inputs.mean_abs, one.inputs.tokens) for one in fed), size)


def weight_magnitudes(fed: Sequence[FedWeight], size: int) -> Tensor:
    """Mean over rows of |w| / (the largest of its group), for the channels that each scale multiplies: [size]."""
    return _pooled(((one.index, _relative(one), len(one.weight)) for one in fed), size)


def _pooled(parts: Iterable[tuple[Tensor, Tensor, int]], size: int) -> Tensor:
    total, count = torch.zeros(size), torch.zeros(size)
    for index, values, share in parts:
        used = index >= 0
        total.index_add_(0, index[used], values[used] * share)
        count.index_add_(0, index[used], torch.full_like(values[used], share))
    return total / count.clamp(min=1)


def _relative(one: FedWeight) -> Tensor:
    result = torch.empty(one.weight.shape[1])
    for _, columns, groups in split_groups(one.weight, one.scheme.group_width(one.weight.shape[1])):
        magnitude = groups.abs()
        largest = magnitude.amax(-1, keepdim=True)
        result[columns] = torch.where(largest > 0, magnitude / largest, 0).mean(0).flatten()
    return result
