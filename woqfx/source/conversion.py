"""From the names and pieces of a file to the tensors of the module tree.

A checkpoint's tensors need not be the model's: they may carry older names, lack or have the base model's
prefix, or be pieces of one parameter (the experts of a mixture, which transformers 5 keeps as one 3-D
parameter). The rules are transformers' own (`transformers.conversion_mapping`), applied as its loader
does, but for one tensor at a time and when it is asked for.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from woqfx.errors import SourceError
from woqfx.skeleton import named_state
from woqfx.source.base import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter, WeightTransform


@dataclass
class _Recipe:
    """The stored tensors that make up one or more parameters."""

    target: str  # the parameter; of several, the one that the pieces are renamed to
    converter: WeightConverter | None  # None: the stored tensor as it is
    pieces: list[tuple[str, str]] = field(default_factory=list)  # the converter's pattern, and the stored name


class Conversion:
    """How each tensor of `model` is made from those of a checkpoint, planned from their infos alone.

    `stored` is what the checkpoint holds under its own names, `transforms` are transformers' rules. Raises
    `SourceError` if two stored tensors claim one place, or if the pieces do not fit together.
    """

    def __init__(
        self, model: PreTrainedModel, transforms: Sequence[WeightTransform], stored: Mapping[str, TensorInfo]
    ) -> None:
        self._model = model
        recipes, strangers = _recipes(model, transforms, stored)
        expected = dict(named_state(model))
        self._recipes: dict[str, _Recipe] = {}
        #: What the checkpoint gives, under the names of the module tree.
        self.tensors: dict[str, TensorInfo] = {}
        for recipe in recipes:
            made = self._make(recipe, lambda name: _meta(stored[name]))
            for name, tensor in made.items():
                if name not in expected:
                    strangers[name] = name
                    continue
                if name in self._recipes:
                    raise SourceError(
                        f"two tensors of the checkpoint claim {name}: {self.origins(name)[0]} and {recipe.pieces[0][1]}"
                    )
                self._recipes[name] = recipe
                self.tensors[name] = TensorInfo(tuple(tensor.shape), tensor.dtype)
        #: Stored names that the model has no place for and transformers does not ignore by rule.
        self.unexpected = _unexpected(model, strangers)

    def origins(self, name: str) -> list[str]:
        """The stored names of the pieces of a tensor."""
        return [stored for _, stored in self._recipes[name].pieces]

    def build(self, name: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """Make one tensor of the module tree, with `read` to fetch the stored ones."""
        return self._make(self._recipes[name], read)[name].contiguous()

    def _make(self, recipe: _Recipe, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        if recipe.converter is None:
            return {recipe.target: read(recipe.pieces[0][1])}
        converter: Any = copy.deepcopy(recipe.converter)  # it holds the tensors while it works
        for pattern, stored in recipe.pieces:
            converter.add_tensor(recipe.target, stored, pattern, read(stored))
        try:
            made = converter.convert(recipe.target, model=self._model, config=self._model.config)
        except Exception as error:  # an operation of transformers on pieces of any shape
            pieces = ", ".join(stored for _, stored in recipe.pieces[:3])
            raise SourceError(
                f"{recipe.target} cannot be put together from its {len(recipe.pieces)} stored tensors "
                f"({pieces}, ...): {error}; check that the files belong to config.json"
            ) from error
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _recipes(
    model: PreTrainedModel, transforms: Sequence[WeightTransform], stored: Mapping[str, TensorInfo]
) -> tuple[list[_Recipe], dict[str, str]]:
    """Group the stored names by the parameter they belong to; the rest, renamed name by stored name."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    renamings = [rule for rule in transforms if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in transforms if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    expected: dict[str, Any] = dict(named_state(model))
    prefix = model.base_model_prefix
    recipes: dict[str, _Recipe] = {}
    strangers: dict[str, str] = {}
    for name in sorted(stored, key=dot_natural_key):  # the order in which experts are stacked
        target, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if target not in expected and name in expected:
            target, pattern = name, None
        if target not in expected:
            strangers[name] = target
            continue
        converter = None if pattern is None else by_pattern[pattern]
        recipe = recipes.setdefault(target, _Recipe(target, converter))
        if recipe.pieces and (converter is None or recipe.converter is None):
            raise SourceError(
                f"two tensors of the checkpoint claim {target}: {recipe.pieces[0][1]} and {name}; remove one of them"
            )
        recipe.pieces.append((pattern or "", name))
    return list(recipes.values()), strangers


def _unexpected(model: PreTrainedModel, strangers: Mapping[str, str]) -> tuple[str, ...]:
    from transformers.utils.loading_report import LoadStateDictInfo

    info = LoadStateDictInfo(
        missing_keys=set(),
        unexpected_keys=set(strangers.values()),
        mismatched_keys=set(),
        conversion_errors={},
        error_msgs=[],
        skipped_pp_keys=set(),
    )
    model._adjust_missing_and_unexpected_keys(info)
    return tuple(name for name, target in strangers.items() if target in info.unexpected_keys)


def _meta(info: TensorInfo) -> torch.Tensor:
    return torch.empty(info.shape, dtype=info.dtype, device="meta")
