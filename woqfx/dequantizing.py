"""From packed weights back to dense parameters."""

from __future__ import annotations

import torch
from torch import nn

from woqfx.backend import PackedWeight
from woqfx.layers import is_transposed
from woqfx.pretrained import forget
from woqfx.skeleton import named_state


def dequantize(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Replace each packed weight of `model` by a dense parameter with the values that it stood for.

    They get the type that the weights had, or `dtype`, and the others then get it too. The same module is returned; it
    takes the memory of the dense model, and saves and merges adapters as any other.
    """
    dense: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, held in [(name, held) for name, held in module._modules.items() if isinstance(held, PackedWeight)]:
            if id(held) not in dense:
                weight = held.dequantize()
                dense[id(held)] = nn.Parameter(weight.T.contiguous() if is_transposed(module) else weight)
            del module._modules[name]
            module._parameters = {name: dense[id(held)], **module._parameters}
    forget(model)
    if dtype is not None:
        for _, tensor in named_state(model):  # not what is computed: rotary frequencies stay as exact as they are
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    return model
