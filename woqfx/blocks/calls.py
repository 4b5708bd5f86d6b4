"""The calls of a block and what it gives for them: sequences whose tensors are kept on shelves."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from woqfx.blocks.activations import Shelf, Store
from woqfx.blocks.block import Block, Call
from woqfx.blocks.trees import leaves, map_leaves
from woqfx.disk.tensorfile import raw_bytes


def hidden_bytes(calls: Sequence[Call]) -> int:
    """About how many bytes the hidden states of all calls take: as many as their first tensors."""
    return sum(next((tensor.nbytes for tensor in leaves((call.args, call.kwargs))), 0) for call in calls)


def in_order(block: Block, give: Callable[[Call], Any]) -> Iterator[tuple[Call, Any]]:
    """Each call with what is given for it; no more in memory at a time than threads work on."""

    def one(call: Call) -> Any:
        with torch.no_grad():
            return give(call)

    for start in range(0, len(block.calls), block.workers):
        calls = block.calls[start : start + block.workers]
        yield from zip(calls, block.map(one, calls), strict=True)


class Distinct:
    """Keeps tensors on a shelf, those of the same content once: masks of batches of one length, rotary embeddings."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._numbers: dict[bytes, int] = {}

    def __call__(self, tensor: Tensor) -> int:
        """Keep a tensor, unless it is there already; returns its number."""
        plain = tensor.detach().contiguous()
        digest = hashlib.blake2b(f"{plain.dtype} {list(plain.shape)} ".encode(), digest_size=32)
        digest.update(raw_bytes(plain))
        key = digest.digest()
        if key not in self._numbers:
            self._numbers[key] = self.shelf.append(plain)
        return self._numbers[key]


class Targets(Sequence[Tensor]):
    """What a block gives in float for each call: computed when it is first asked for, by whatever thread."""

    def __init__(self, block: Block, calls: Sequence[Call], store: Store) -> None:
        self._block, self._calls, self._store = block, calls, store
        self._numbers: dict[int, int] = {}
        self._lock = threading.Lock()
        self._shelf: Shelf | None = None

    @property
    def shelf(self) -> Shelf:
        """Where they are kept."""
        if self._shelf is None:
            self._shelf = self._store.shelf(hidden_bytes(self._calls))
        return self._shelf

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return _Slice(self, range(len(self))[index])
        index = range(len(self))[index]
        if index not in self._numbers:
            with torch.no_grad():
                tensor = self._block.run(self._calls[index])
            with self._lock:
                self._numbers[index] = self.shelf.append(tensor)
        return self.shelf[self._numbers[index]]

    def __len__(self) -> int:
        return len(self._calls)


class _Slice(Sequence[Tensor]):
    """Some of the targets."""

    def __init__(self, targets: Targets, which: range) -> None:
        self._targets, self._which = targets, which

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return _Slice(self._targets, self._which[index])
        return self._targets[self._which[index]]

    def __len__(self) -> int:
        return len(self._which)


@dataclass(frozen=True)
class _Kept:
    """Stands for a tensor on a shelf."""

    number: int


class Calls(Sequence[Call]):
    """Calls whose tensors are on a shelf, but for those that are kept elsewhere already (`owned`, by id)."""

    def __init__(self, shelf: Shelf, owned: Mapping[int, Tensor]) -> None:
        self.shelf = shelf
        self._owned = owned
        self._keep = Distinct(shelf)
        self._trees: list[Any] = []

    def add(self, call: Call) -> None:
        """Keep one more."""

        def keep(tensor: Tensor) -> Tensor | _Kept:
            return tensor if id(tensor) in self._owned else _Kept(self._keep(tensor))

        self._trees.append(map_leaves((call.args, dict(call.kwargs)), keep))

    @overload
    def __getitem__(self, index: int) -> Call: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Call]: ...
    def __getitem__(self, index: int | slice) -> Call | Sequence[Call]:
        if isinstance(index, slice):
            return [self._call(tree) for tree in self._trees[index]]
        return self._call(self._trees[index])

    def _call(self, tree: Any) -> Call:
        args, kwargs = map_leaves(tree, lambda kept: self.shelf[kept.number], _Kept)
        return Call(args, kwargs)

    def __len__(self) -> int:
        return len(self._trees)
