"""What the weights of a stored model are for: a format that packs linear layers alone must know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from woqfx.errors import CheckpointError
from woqfx.format import StoredModel
from woqfx.layers import LayerInfo, find_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def module_tree(model: StoredModel) -> PreTrainedModel:
    """The module tree of `model` on the meta device, with its config as transformers parses it.

    Raises `CheckpointError` for a model without a config, of which nothing is known.
    """
    from woqfx.config import build

    if model.config is None:
        raise CheckpointError(f"{model.label} has no config.json, which readers of other formats need")
    return build(model.config, len(model.weights) + len(model.kept), model.label)


def layers_of(model: StoredModel) -> dict[str, LayerInfo]:
    """Every linear layer, embedding and stack of experts of `model`, by the name of its weight.

    Raises `CheckpointError` as `module_tree` does.
    """
    return {layer.weight: layer for layer in find_layers(module_tree(model))}
