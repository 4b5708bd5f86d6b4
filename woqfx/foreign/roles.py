"""What the weights of a stored model are for: a format that packs linear layers alone must know."""

from __future__ import annotations

from woqfx.errors import CheckpointError
from woqfx.format import StoredModel
from woqfx.layers import LayerInfo, find_layers


def layers_of(model: StoredModel) -> dict[str, LayerInfo]:
    """Every linear layer, embedding and stack of experts of `model`, by the name of its weight.

    Raises `CheckpointError` for a model without a config, of which nothing is known.
    """
    from woqfx.config import build

    if model.config is None:
        raise CheckpointError(f"{model.label} has no config.json, which readers of other formats need")
    tree = build(model.config, len(model.weights) + len(model.kept), model.label)
    return {layer.weight: layer for layer in find_layers(tree)}
