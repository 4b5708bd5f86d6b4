"""Where the tensors of a module tree stand, and how others take their places."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from woqfx.backend import PackedWeight
from woqfx.errors import CheckpointError


class Places:
    """The places of a module tree's parameters, found in one walk: a shared one has several.

    Tensors that come from outside are put through this, by name; the tree must not be changed otherwise meanwhile.
    `label` is what messages call the source of the tensors.
    """

    def __init__(self, model: nn.Module, label: str) -> None:
        self._model, self._label = model, label
        self._owners: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
        for module in model.modules():
            for key, parameter in module._parameters.items():
                self._owners[id(parameter)].append((module, key))

    def install(self, name: str, packed: PackedWeight) -> None:
        """Put `packed` where the parameter `name` was, under every name that shares that parameter."""
        owner, _, key = name.rpartition(".")
        parameter = self._model.get_submodule(owner)._parameters[key]
        for module, place in self._owners.pop(id(parameter)):
            del module._parameters[place]
            setattr(module, place, packed)
            if hasattr(module, "is_transposed") and hasattr(module, "config"):
                # The other ways to run experts take the whole stack as one dense tensor.
                config: Any = module.config
                config._experts_implementation = "eager"

    def put(self, name: str, tensor: Tensor) -> None:
        """Give a parameter or buffer its value, under every name that shares it. Raises `CheckpointError`."""
        owner, _, key = name.rpartition(".")
        try:
            module = self._model.get_submodule(owner)
        except AttributeError:
            raise CheckpointError(f"{self._label}: the model has no {name}") from None
        held: Mapping[str, Any] = module._parameters if key in module._parameters else module._buffers
        current = held.get(key)
        if current is None:
            raise CheckpointError(f"{self._label}: the model has no {name}")
        if current.shape != tensor.shape or current.is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(
                f"{self._label}: {name} is {tensor.dtype} {list(tensor.shape)}; the model's is "
                f"{current.dtype} {list(current.shape)}"
            )
        if key in module._buffers:
            module._buffers[key] = tensor
            return
        parameter = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        owners = self._owners.pop(id(current))
        for other, place in owners:
            other._parameters[place] = parameter
        self._owners[id(parameter)] = owners
