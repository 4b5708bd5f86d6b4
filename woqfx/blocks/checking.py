"""What is checked of everything that an algorithm gives back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from woqfx.algorithm import Layer
from woqfx.errors import PluginError
from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme


def check_rounded(who: str, q: Any, scheme: Scheme, shape: tuple[int, ...]) -> None:
    """Raise `PluginError`, or `CheckpointError` for values, unless `q` is a weight of this shape by this scheme."""
    if not isinstance(q, QTensor):
        raise PluginError(f"{who} returned {type(q).__name__}, not a QTensor")
    if q.scheme != scheme or q.shape != shape:
        raise PluginError(f"{who} returned {list(q.shape)} by {q.scheme}, where {list(shape)} was planned")
    if q.offsets is not None:
        raise PluginError(f"{who} returned a weight with offsets, which files of other programs have: give zero points")
    specs = QTensor.specs(q.dtype, q.scheme, q.shape, ordered=q.order is not None)
    found = {suffix: (part.dtype, tuple(part.shape)) for suffix, part in q.tensors().items()}
    if found != specs:
        raise PluginError(f"{who} returned parts {found}, where its scheme has {specs}")
    q.check(who)


def check_refined(
    who: str, name: str, value: Any, parameters: Mapping[str, Tensor], layers: Mapping[str, Layer]
) -> None:
    """Raise `PluginError` unless `value` can take the place of the block's parameter `name`."""
    if name not in parameters:
        raise PluginError(f"{who} refined {name!r}, which the block does not have")
    if name in layers:
        check_rounded(f"{name}: {who}", value, layers[name].scheme, tuple(layers[name].weight.shape))
        return
    if not isinstance(value, Tensor) or value.shape != parameters[name].shape:
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise PluginError(f"{who} returned {shape} for {name}, which is {list(parameters[name].shape)}")
    if not bool(torch.isfinite(value).all()):
        raise PluginError(f"{who} returned values for {name} that are not finite")
