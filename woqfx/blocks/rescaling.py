"""Rescaling a block as an algorithm asks: with scales that storage can hold, and only if nothing changes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from woqfx.algorithm import Fold
from woqfx.blocks.block import Block, Feed
from woqfx.blocks.folding import fold as folded
from woqfx.errors import PluginError

#: |run - target|^2 / |target|^2 that float32 rounding may make of a fold.
_TOLERANCE = 1e-8


def try_fold(
    block: Block, fold: Fold, kept: Mapping[str, torch.dtype], who: str
) -> tuple[dict[str, Tensor], Tensor] | str:
    """The parameters that change, and the scale float32 [size] as it really is; or why the fold cannot be used.

    `kept` are the types of the parameters that are written as they are, not quantized: a norm in bfloat16 cannot be
    divided by just any number. Raises `PluginError`, which names `who`, for a scale that is none.
    """
    feed, scale = fold.feed, fold.scale.detach().float()
    if scale.shape != (feed.size,) or not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise PluginError(f"{who} gave scales for {feed.name} that are not {feed.size} positive numbers")
    scale = storable(feed, scale, block.parameters, kept)
    changed = {
        name: tensor.to(kept[name]).float() if name in kept else tensor
        for name, tensor in folded(feed, scale, block.parameters).items()
    }
    if not all(bool(torch.isfinite(tensor).all()) for tensor in changed.values()):
        return "a parameter would overflow"
    error = block.error(changed)
    short = [kept[name] for name in changed if name in kept]
    allowed = max([_TOLERANCE, *((torch.finfo(kind).eps / 2) ** 2 for kind in short)])
    if not error <= allowed:
        return f"the block's output would change by {error:.3g} (square, relative)"
    return changed, scale


def storable(feed: Feed, scale: Tensor, parameters: Mapping[str, Tensor], kept: Mapping[str, torch.dtype]) -> Tensor:
    """The scale near `scale` that the types of kept parameters can express.

    A norm's weight takes any scale: the one that its rounded quotient really has. Where that cannot be, for a kept
    matrix, or a vector of which several elements share a scale, it is a power of two, in which every float is exact.
    """
    short = {name for name, kind in kept.items() if torch.finfo(kind).eps > torch.finfo(torch.float32).eps}
    scale = scale.clone()
    vectors = []
    for names, matrix_like in ((feed.producers, False), (feed.consumers, True)):
        for name in short & names.keys():
            index = names[name][names[name] >= 0]
            if matrix_like or parameters[name].ndim > 1 or len(set(index.tolist())) < len(index):
                scale[index] = torch.exp2(scale[index].log2().round())
            else:
                vectors.append(name)
    for name in sorted(vectors, key=list(feed.producers).index)[:1]:
        scale = _real(feed, name, scale, parameters[name], kept[name])
    return scale


def _real(feed: Feed, name: str, scale: Tensor, parameter: Tensor, kind: torch.dtype) -> Tensor:
    """The scale by which the rounded quotient of a vector is smaller."""
    index = feed.producers[name]
    used = index >= 0
    asked, shift = scale[index[used]], 1.0 if name in feed.one_plus else 0.0
    before = parameter[used].double() + shift
    after = (before / asked - shift).to(kind).double() + shift
    real = (before / after).float()
    # What is 0 takes any scale.
    real = torch.where(before == 0, asked, real)
    good = torch.isfinite(real) & (real > 0) & (real / asked < 2) & (asked / real < 2)
    scale = scale.clone()
    scale[index[used]] = torch.where(good, real, torch.ones(()))
    return scale
