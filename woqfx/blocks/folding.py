"""Folding scales: what feeds some weights is divided, the weights are multiplied, and nothing changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from woqfx.blocks.block import Feed


def fold(feed: Feed, scale: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that `feed` names, rescaled by `scale` float32 [feed.size]. None of them is changed in place.

    A parameter can be producer and consumer of one feed; of several feeds, fold one after the other.
    """
    changed = divide(feed, scale, parameters)
    for name, index in feed.consumers.items():
        weight = changed.get(name, parameters[name])
        changed[name] = weight * _pick(scale, index).unsqueeze(-2)
    return changed


def divide(feed: Feed, scale: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The producers' half of `fold`."""
    changed: dict[str, Tensor] = {}
    for name, index in feed.producers.items():
        divisor, parameter = _pick(scale, index), parameters[name]
        if name in feed.one_plus:
            # (1 + w) / s - 1 loses the digits of a small w; at s = 1 it must give w.
            changed[name] = parameter / divisor + (divisor.reciprocal() - 1)
        else:
            # A weight [..., N, K] has one index for each row.
            changed[name] = parameter / (divisor.unsqueeze(-1) if parameter.ndim > index.ndim else divisor)
    return changed


def _pick(scale: Tensor, index: Tensor) -> Tensor:
    """`scale[index]`, and 1 where the index is -1."""
    return torch.where(index < 0, scale.new_ones(()), scale[index.clamp(min=0)])
