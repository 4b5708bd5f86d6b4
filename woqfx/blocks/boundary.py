"""What the journal says of a finished block, so that another run can go on behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from woqfx.blocks.activations import FileShelf
from woqfx.blocks.block import Feed
from woqfx.blocks.finding import BlockInfo
from woqfx.blocks.performance import holds_more


@dataclass(frozen=True)
class Boundary:
    """A finished block, and the journal's record of it."""

    block: BlockInfo
    record: Mapping[str, Any]

    @property
    def trees(self) -> Sequence[Any]:
        """What it gave, as `woqfx.blocks.performance.describe` has it; empty if no block to come needs it."""
        return self.record["given"] or ()


def find_boundaries(blocks: Sequence[BlockInfo], facts: Mapping[str, Mapping[str, Any]]) -> list[Boundary]:
    """The blocks that the facts of written tensors say are finished, in order."""
    records = {one["block"]["name"]: one["block"] for one in facts.values() if "block" in one}
    return [Boundary(block, records[block.name]) for block in blocks if block.name in records]


def needed(boundaries: Sequence[Boundary]) -> list[Boundary]:
    """Those whose activations blocks to come may need: the last of each list, and who gave more than hidden states."""
    found = [boundary for boundary in boundaries if boundary.trees]
    last = {boundary.block.stack: boundary for boundary in found}
    return [one for one in found if last[one.block.stack] is one or holds_more(one.trees)]


def check_boundaries(work: Path, boundaries: Sequence[Boundary]) -> None:
    """Raise `CheckpointError` unless the activations that are needed are as they were written."""
    for boundary in needed(boundaries):
        FileShelf.reopen(work, boundary.record["activations"]).clear()


def feed_to_json(feed: Feed, keep: Callable[[Tensor], int]) -> dict[str, Any]:
    """A feed as JSON, its indices kept elsewhere by number."""
    return {
        "name": feed.name,
        "size": feed.size,
        "producers": {name: keep(index) for name, index in feed.producers.items()},
        "consumers": {name: keep(index) for name, index in feed.consumers.items()},
        "one_plus": sorted(feed.one_plus),
    }


def feed_from_json(found: Mapping[str, Any], kept: Sequence[Tensor]) -> Feed:
    """The inverse of `feed_to_json`."""
    producers, consumers = (
        {name: kept[number] for name, number in found[side].items()} for side in ("producers", "consumers")
    )
    return Feed(found["name"], found["size"], producers, consumers, frozenset(found["one_plus"]))
