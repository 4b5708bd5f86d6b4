"""Which layers readers of these formats unpack: linear ones, each with tensors of its own."""

from __future__ import annotations

from woqfx import FileNames, Role, StoredModel


def kept_linear(model: StoredModel, names: FileNames) -> list[str]:
    """The linear layers that are not quantized, as files name them.

    A head that is the embedding's other name is one of them; so are experts, and routers, which are linear layers to
    readers, though none to the module tree.
    """
    kept: list[str] = []
    for parameter, layer in names.layers.items():
        if layer.role == Role.EMBEDDING:
            kept += layer.others
        elif parameter not in model.weights:
            kept += [module_of(matrix.name) for matrix in names.matrices(parameter)]
            kept += layer.others
    routers = (name for name in model.kept if name.endswith(".weight") and name not in names.layers)
    return kept + [
        module_of(names.name(name, model.kept[name].shape)) for name in routers if len(model.kept[name].shape) == 2
    ]


def module_of(weight: str) -> str:
    """The module of a weight."""
    return weight.removesuffix(".weight")
