"""Which layers readers of these formats unpack: linear ones, each with tensors of its own."""

from __future__ import annotations

from woqfx import LayerInfo, Role, StoredModel, layers_of


def is_packable(layer: LayerInfo | None) -> bool:
    """Whether it is a linear layer with a weight [N, K]: no embedding, no stack of experts, no transposed `Conv1D`."""
    return layer is not None and layer.role in (Role.LINEAR, Role.HEAD) and not layer.transposed


def kept_linear(model: StoredModel) -> list[str]:
    """The linear layers that are not quantized; a head that is the embedding's other name is one of them."""
    kept: list[str] = []
    for name, layer in layers_of(model).items():
        if layer.role == Role.EMBEDDING:
            kept += layer.others
        elif is_packable(layer) and name not in model.weights:
            kept += [layer.name, *layer.others]
    return kept
