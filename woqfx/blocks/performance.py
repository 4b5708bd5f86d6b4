"""What finished blocks gave, so that it can be played back to the model, and written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from woqfx.blocks.activations import Shelf
from woqfx.blocks.block import Call
from woqfx.blocks.finding import BlockInfo
from woqfx.blocks.trees import from_json, leaves, to_json
from woqfx.errors import SourceError


class Performance:
    """What the finished blocks gave for each batch, to be played back: one reading of the model, float or quantized."""

    def __init__(self) -> None:
        self._given: dict[str, _Given] = {}

    def __contains__(self, block: str) -> bool:
        return block in self._given

    def add(self, block: BlockInfo, trees: Sequence[Any], shelf: Shelf) -> list[Shelf]:
        """A block is finished: `trees[i]`, from `describe`, is what it gave for batch i, with tensors in `shelf`.

        Returns the shelves that no block to come will need.
        """
        spent = []
        for given in self._given.values():
            # Of a stack only the last block's hidden states are used; what else a block gave may be used by all.
            if given.block.stack == block.stack and not given.spent:
                given.spent = True
                if not holds_more(given.trees):
                    spent.append(given.shelf)
        self._given[block.name] = _Given(block, trees, shelf)
        return spent

    def play(self, block: str, batch: int, arguments: Any) -> Any:
        """What a finished block gave for a batch when it was called with such arguments."""
        given = self._given[block]
        inputs = list(leaves(arguments))
        hidden = next(_places(given.trees[batch]))

        def tensor(place: Any) -> Any:
            if "argument" in place:
                return inputs[place["argument"]]
            if given.spent and place == hidden:
                # If the model did use these after all, the arguments of later blocks would show it.
                return torch.full((), torch.nan).expand(place["shape"])
            return given.shelf[place["kept"]]

        return from_json(given.trees[batch], tensor)

    def tensors(self) -> Iterator[Tensor]:
        """The tensors that it plays back: the same objects each time."""
        for given in self._given.values():
            yield from given.shelf


def holds_more(trees: Sequence[Any]) -> bool:
    """Whether a block gave more than hidden states."""
    return any(len(list(_places(tree))) > 1 for tree in trees)


@dataclass
class _Given:
    """What one block gave: a structure for each batch, and the tensors, whose hidden states may be spent."""

    block: BlockInfo
    trees: Sequence[Any]
    shelf: Shelf
    spent: bool = False


def describe(output: Any, call: Call, keep: Callable[[Tensor], int], block: str) -> Any:
    """What a block gave as JSON: an argument that it passed on is named as such, other tensors are kept.

    Raises `SourceError` for anything but tensors and plain values, in tuples and lists.
    """
    inputs = {id(tensor): number for number, tensor in enumerate(leaves((call.args, dict(call.kwargs))))}

    def place(tensor: Tensor) -> Any:
        if id(tensor) in inputs:
            return {"argument": inputs[id(tensor)]}
        return {"kept": keep(tensor), "shape": list(tensor.shape)}

    try:
        return to_json(output, place)
    except TypeError as error:
        raise SourceError(f"{block} returns a {error}, which woqfx cannot play back: use algorithm rtn") from None


def _places(tree: Any) -> Iterator[Any]:
    """What stands for tensors in a tree that `describe` made."""
    found: list[Any] = []
    from_json(tree, found.append)
    return iter(found)
