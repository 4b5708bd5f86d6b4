"""Finding the repeated blocks of a model: what data-driven algorithms go through one after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import nn

from woqfx.errors import SourceError
from woqfx.plugins import registry


@dataclass(frozen=True)
class BlockInfo:
    """A block by its dotted name, and the name of the list that holds it."""

    name: str
    stack: str

    def holds(self, tensor: str) -> bool:
        """Whether the tensor of this name is the block's own."""
        return tensor.startswith(f"{self.name}.")


def find_blocks(model: nn.Module, weights: Collection[str]) -> tuple[BlockInfo, ...]:
    """The blocks of a model in the order of their use, which is that of the module tree: an encoder comes first.

    They are the members of the outermost lists of modules whose members hold some of `weights`, names of parameters.
    A `woqfx_architecture` hook may name the lists instead. Raises `SourceError` if there are none.
    """
    stacks = list(registry().architecture(model).stacks) or _outermost(_stacks(model, weights))
    blocks = tuple(BlockInfo(f"{stack}.{key}", stack) for stack in stacks for key, _ in _members(model, stack))
    if not blocks:
        raise SourceError(
            f"{type(model).__name__} has no repeated blocks that woqfx could find: quantize it with algorithm rtn, "
            "which needs no data, or name its lists of blocks in a woqfx_architecture hook"
        )
    return blocks


def _members(model: nn.Module, stack: str) -> Iterator[tuple[str, nn.Module]]:
    try:
        return model.get_submodule(stack).named_children()
    except AttributeError:
        raise SourceError(
            f"a woqfx_architecture hook names the blocks {stack!r}, which {type(model).__name__} does not have"
        ) from None


def _stacks(model: nn.Module, weights: Collection[str]) -> list[str]:
    """Lists whose members are more than one layer each, and hold weights."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and len(module)
        and all(any(True for _ in member.children()) for member in module)
        and any(weight.startswith(f"{name}.") for weight in weights)
    ]


def _outermost(names: list[str]) -> list[str]:
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
