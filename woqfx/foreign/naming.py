"""How files name what a module tree holds: experts one by one, and names that are older than the tree's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from woqfx.foreign.roles import module_tree
from woqfx.format import StoredModel
from woqfx.layers import LayerInfo, Role, find_layers
from woqfx.qtensor import QTensor


@dataclass(frozen=True)
class Matrix:
    """A weight [N, K] as a file holds it: a parameter itself, or `rows` of the matrix of one `expert` of a stack."""

    name: str
    shape: tuple[int, int]
    expert: int = 0
    rows: slice | None = None

    def of(self, weight: QTensor) -> QTensor:
        """Its share of the parameter."""
        return weight if self.rows is None else weight[self.expert].rows(self.rows)


class FileNames:
    """The names in which transformers saves `model`: those that readers of other formats look for.

    They are found by sending stand-ins through transformers' own rules for saving. `layers` are all that could be
    quantized, by the parameter's name. Raises `CheckpointError` for a model without a config.
    """

    def __init__(self, model: StoredModel) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import PrefixChange

        self._tree = cast("Any", module_tree(model))
        self.layers = {layer.weight: layer for layer in find_layers(self._tree)}
        self._matrices: dict[str, tuple[Matrix, ...]] = {}
        rules = get_model_conversion_mapping(self._tree, add_legacy=False)
        self._rules = [rule for rule in rules if not isinstance(rule, PrefixChange)]
        self._tree._weight_conversions = self._rules

    def _saved(self, name: str, stand_in: Tensor) -> dict[str, Tensor]:
        from transformers.core_model_loading import revert_weight_conversion

        if not self._rules:
            return {name: stand_in}
        made: dict[str, Tensor] = revert_weight_conversion(self._tree, {name: stand_in})
        return made

    def name(self, parameter: str, shape: tuple[int, ...]) -> str:
        """The stored name of a parameter that is saved as it is; its own, if it is saved otherwise."""
        made = self._saved(parameter, torch.empty(shape, device="meta"))
        only = next(iter(made.items()))
        return only[0] if len(made) == 1 and only[1].shape == shape else parameter

    def matrices(self, parameter: str) -> tuple[Matrix, ...]:
        """The linear layers that hold a quantized parameter; none if files hold it otherwise."""
        if parameter not in self._matrices:
            self._matrices[parameter] = self._find(parameter)
        return self._matrices[parameter]

    def _find(self, parameter: str) -> tuple[Matrix, ...]:
        layer = self.layers.get(parameter)
        if layer is None or layer.transposed or layer.role not in (Role.LINEAR, Role.HEAD, Role.EXPERTS):
            return ()
        if layer.role == Role.EXPERTS:
            return self._experts(layer)
        n, k = layer.shape
        return (Matrix(self.name(parameter, (n, k)), (n, k)),)

    def _experts(self, layer: LayerInfo) -> tuple[Matrix, ...]:
        """Row numbers go through the rules in place of weights, in two columns that differ by a half."""
        if len(layer.shape) != 3 or layer.obstacle:
            return ()
        experts, n, k = layer.shape
        numbers = torch.arange(experts * n, dtype=torch.float64).view(experts, n, 1)
        numbers = numbers + torch.tensor([0.0, 0.5], dtype=torch.float64)
        made = self._saved(layer.weight, numbers)
        whole, found, count = numbers.view(-1, 2), [], 0
        for name, part in made.items():
            start = int(part.flatten()[0])
            expert, first = divmod(start, n)
            is_run = part.ndim == 2 and first + len(part) <= n and torch.equal(part, whole[start : start + len(part)])
            if not is_run or not name.endswith(".weight"):
                return ()
            found.append(Matrix(name, (len(part), k), expert, slice(first, first + len(part))))
            count += len(part)
        return tuple(found) if count == experts * n else ()
