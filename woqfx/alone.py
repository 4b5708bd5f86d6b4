"""Quantizing one weight of which no data are known."""

from __future__ import annotations

from torch import Tensor

from woqfx.algorithm import Algorithm, Layer
from woqfx.blocks.checking import check_rounded
from woqfx.blocks.composition import blamed, titled
from woqfx.done import Done
from woqfx.planned import LayerPlan
from woqfx.plugins import registry
from woqfx.quality import relative_error


def quantize_one(rounder: Algorithm, planned: LayerPlan, stored: Tensor) -> Done:
    """Quantize one weight, and check what the algorithm made of it. One that needs data rounds to nearest.

    Raises `WeightError` and `PluginError`.
    """
    assert planned.scheme is not None
    layer, scheme = planned.layer, planned.scheme
    weight = layer.logical(stored)
    one = Layer(layer.name, weight, scheme, registry().dtype(scheme.dtype))
    with blamed(rounder, layer.name):
        q = Algorithm.round(rounder, one) if rounder.needs_data else rounder.round(one)
    check_rounded(f"{layer.name}: {titled(rounder)}", q, scheme, layer.shape)
    return Done(layer.weight, q, relative_error(weight, q))
