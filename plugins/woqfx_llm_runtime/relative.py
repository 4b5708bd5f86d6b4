"""Buckets of distances: from a T5's table to a bias for each distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from woqfx_llm_runtime.description import RelativeBias


def by_distance(bias: RelativeBias, table: Tensor) -> Tensor:
    """From rows [buckets, heads] to float32 [heads, 2 * max_distance + 1], for distances from -max_distance on.

    A distance is the key's position less the query's. All beyond have the bias of the last.
    """
    distances = torch.arange(-bias.max_distance, bias.max_distance + 1)
    return table.float()[buckets_of(distances, bias)].T.contiguous()


def buckets_of(distances: Tensor, bias: RelativeBias) -> Tensor:
    """The bucket of each distance, int64, as Mesh TensorFlow and transformers count them, in float32."""
    count = bias.buckets // 2 if bias.bidirectional else bias.buckets
    after = (distances > 0) * count if bias.bidirectional else torch.zeros_like(distances)
    size = distances.abs() if bias.bidirectional else (-distances).clamp(min=0)
    exact = count // 2
    octaves = torch.log(size.float() / exact) / math.log(bias.max_distance / exact)
    shared = exact + (octaves.clamp(min=0) * (count - exact)).long()
    return after + torch.where(size < exact, size, shared.clamp(max=count - 1))
