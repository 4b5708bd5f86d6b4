"""Nested tuples, lists and dictionaries with tensors in them: what blocks are called with and give back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

#: Values that are kept as they are.
_PLAIN = (type(None), bool, int, float, str)


def leaves(tree: Any, kind: type[Any] = Tensor) -> Iterator[Any]:
    """The tensors of a tree, or other leaves of one kind, in a fixed order."""
    if isinstance(tree, kind):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value, kind)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from leaves(value, kind)


def map_leaves(tree: Any, change: Callable[[Any], Any], kind: type[Any] = Tensor) -> Any:
    """The same tree with each tensor, or other leaf of one kind, changed; other objects stay the same objects."""
    if isinstance(tree, kind):
        return change(tree)
    if type(tree) is dict:
        return {key: map_leaves(value, change, kind) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(map_leaves(value, change, kind) for value in tree)
    return tree


def to_json(tree: Any, leaf: Callable[[Tensor], Any]) -> Any:
    """A tree as JSON, with what `leaf` gives for each tensor. Raises `TypeError` for what is no tree."""
    if isinstance(tree, Tensor):
        return {"tensor": leaf(tree)}
    if type(tree) is tuple:
        return {"tuple": [to_json(value, leaf) for value in tree]}
    if type(tree) is list:
        return {"list": [to_json(value, leaf) for value in tree]}
    if type(tree) in _PLAIN:
        return {"value": tree}
    raise TypeError(type(tree).__name__)


def from_json(found: Mapping[str, Any], tensor: Callable[[Any], Any]) -> Any:
    """The inverse of `to_json`."""
    ((kind, value),) = found.items()
    if kind == "tensor":
        return tensor(value)
    if kind == "value":
        return value
    members = [from_json(member, tensor) for member in value]
    return tuple(members) if kind == "tuple" else members
