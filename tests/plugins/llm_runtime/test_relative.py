"""Buckets of distances are those of transformers, and a table of them ends where they do."""

from __future__ import annotations

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from woqfx_llm_runtime.description import RelativeBias
from woqfx_llm_runtime.relative import buckets_of, by_distance

SHAPES = [(32, 128), (8, 20), (4, 3), (64, 1000), (33, 77)]


@pytest.mark.parametrize("bidirectional", [True, False], ids=["encoder", "decoder"])
@pytest.mark.parametrize(("buckets", "furthest"), SHAPES, ids=str)
def test_buckets(buckets, furthest, bidirectional):
    bias = RelativeBias("w", buckets, furthest, bidirectional)
    distances = torch.arange(-3 * furthest, 3 * furthest + 1)
    wanted = T5Attention._relative_position_bucket(distances, bidirectional, buckets, furthest)
    assert torch.equal(buckets_of(distances, bias), wanted)
    table = torch.randn(buckets, 5)
    found = by_distance(bias, table)[:, distances.clamp(-furthest, furthest) + furthest]
    assert torch.equal(found, table[wanted].T)
