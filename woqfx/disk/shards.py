"""The files of weights of an output, planned before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from woqfx.disk.tensorfile import Layout, layout

#: The largest weight file to write; larger models get several.
SHARD_BYTES = 4_000_000_000

_SINGLE = "model.safetensors"

#: A tensor's parts in the order in which they are written: stored name, type, shape.
Parts = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Shard:
    """A file yet to be written: its name, how its bytes lie, and the items whose tensors it holds, in order."""

    name: str
    layout: Layout
    items: tuple[str, ...]


def safetensors_shards(items: Mapping[str, Parts], shard_bytes: int) -> Sequence[Shard]:
    """Fill safetensors files in order; an item is not split."""
    groups: list[dict[str, Parts]] = []
    room = 0
    for item, parts in items.items():
        size = sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in parts.values())
        if not groups or size > room:
            groups.append({})
            room = shard_bytes
        groups[-1][item] = parts
        room -= size
    count = len(groups)
    names = [_SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    return [
        Shard(
            name,
            layout({n: spec for parts in group.values() for n, spec in parts.items()}, {"format": "pt"}),
            tuple(group),
        )
        for name, group in zip(names, groups, strict=True)
    ]
