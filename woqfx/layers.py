"""Which weights of a module tree can be quantized, and how a packed one takes a parameter's place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from woqfx.backend import PackedWeight


class Role(StrEnum):
    """What a weight is for."""

    LINEAR = "linear"
    EXPERTS = "experts"
    EMBEDDING = "embedding"
    HEAD = "output head"


@dataclass(frozen=True)
class LayerInfo:
    """A weight that could be quantized.

    `name` is the module's dotted name, or, for experts, the parameter's; rules match it or any of
    `others`, the names of modules that share the weight. `weight` is the parameter's name. `shape` is
    [N, K] or [E, N, K] whatever the storage; `transposed` says that the parameter is stored as [K, N]
    (transformers' `Conv1D`). `obstacle` says why it cannot be quantized, if it cannot.
    """

    name: str
    weight: str
    role: Role
    shape: tuple[int, ...]
    transposed: bool = False
    obstacle: str = ""
    others: tuple[str, ...] = ()

    def logical(self, stored: Tensor) -> Tensor:
        """The stored parameter as [..., N, K]."""
        return stored.T.contiguous() if self.transposed else stored


#: Subclasses of `nn.Linear` whose own forward is known to be `x @ weight.T + bias`.
_KNOWN_FORWARDS = {"FalconLinear"}

#: Linear layers whose weight the forward of their owner multiplies by directly (Mamba's mixers).
_DENSE_USES = (".dt_proj",)


def find_layers(model: nn.Module) -> list[LayerInfo]:
    """Every linear layer, embedding and stack of experts, in the order of the module tree.

    A tied weight is listed once, under its first name; it is an embedding there.
    """
    heads = _output_heads(model)
    found: dict[int, LayerInfo] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for layer, parameter in _layers_of(name, module, heads):
            first = found.setdefault(id(parameter), layer)
            if first is not layer:
                found[id(parameter)] = replace(first, others=(*first.others, layer.name))
    return list(found.values())


def _layers_of(name: str, module: nn.Module, heads: set[int]) -> Iterator[tuple[LayerInfo, nn.Parameter]]:
    own = module._parameters
    weight = own.get("weight")
    prefix = f"{name}." if name else ""
    path = prefix + "weight"
    name = name or "weight"  # a model that is itself one layer
    if weight is not None and 0 in weight.shape:
        return  # it holds nothing
    if isinstance(module, nn.Embedding) and weight is not None:
        obstacle = "" if module.max_norm is None else "max_norm rewrites its weights at every look-up"
        yield LayerInfo(name, path, Role.EMBEDDING, tuple(weight.shape), obstacle=obstacle), weight
    elif isinstance(module, nn.Linear) and weight is not None:
        role = Role.HEAD if id(module) in heads else Role.LINEAR
        yield LayerInfo(name, path, role, tuple(weight.shape), obstacle=_obstacle(name, module)), weight
    elif is_transposed(module) and weight is not None:
        yield LayerInfo(name, path, Role.LINEAR, (weight.shape[1], weight.shape[0]), True), weight
    elif hasattr(module, "is_transposed") and hasattr(module, "is_concatenated"):
        # transformers marks its classes of stacked experts with these.
        obstacle = "its experts are stored transposed, which no kernel multiplies by" if module.is_transposed else ""
        for key, parameter in own.items():
            if parameter is not None and parameter.ndim == 3:
                path = prefix + key
                yield LayerInfo(path, path, Role.EXPERTS, tuple(parameter.shape), obstacle=obstacle), parameter


def is_transposed(module: nn.Module) -> bool:
    """Whether it is transformers' `Conv1D`, a linear layer that stores its weight as [K, N]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _obstacle(name: str, module: nn.Linear) -> str:
    """Why a linear layer's weight cannot be packed: the model uses it otherwise than in `linear(x, weight)`."""
    kind = type(module)
    if kind is NonDynamicallyQuantizableLinear:
        return "MultiheadAttention takes its weight as a dense tensor"
    if kind.forward is not nn.Linear.forward and kind.__name__ not in _KNOWN_FORWARDS:
        return f"{kind.__name__} has a forward of its own, which may not go through linear()"
    if name.endswith(_DENSE_USES):
        return "state-space models multiply by its weight as a dense tensor"
    return ""


def _output_heads(model: nn.Module) -> set[int]:
    """The output embedding, and what a task's model adds beside its base model: a classifier, a score, a span."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter is not None else None
    heads = set() if head is None else {id(head)}
    base = getattr(model, getattr(model, "base_model_prefix", "") or "-", None)
    if isinstance(base, nn.Module):
        heads |= {id(child) for child in model.children() if isinstance(child, nn.Linear)}
    return heads


def packed_weights(model: nn.Module) -> dict[str, PackedWeight]:
    """The packed weights of a model by parameter name; a tied one once, under its first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedWeight)}
