"""A small algorithm that looks at data: it has all three steps, and takes no time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

import woqfx
from woqfx import Algorithm, Block, Fold, Layer, QTensor, option, quantize_nearest
from woqfx.calibration import CalibrationRequest

RATIOS = (1.0, 0.95, 0.9, 0.85)


@dataclass(frozen=True)
class Options:
    """What it can be asked."""

    power: float = option(0.25, "How much of an input's magnitude goes into the weights.")
    in_order: bool = option(True, "Round weights in the order of their use.")


class Shrinking(Algorithm):
    """Rescales by a power of the inputs' magnitudes, takes the best of four ranges, and moves biases a little."""

    name = "shrinking"
    needs_data = True
    Options = Options

    @property
    def sequential(self) -> bool:
        return self.options.in_order

    def transform(self, block: Block) -> Iterable[Fold]:
        for feed in block.feeds:
            (consumer, index), *_ = feed.consumers.items()
            (seen, *_) = block.statistics([consumer])[consumer]
            scale = torch.ones(feed.size)
            row = index.reshape(-1, index.shape[-1])[0]
            scale[row[row >= 0]] = (seen.mean_abs[row >= 0] + 1e-3) ** self.options.power
            yield Fold(feed, scale / scale.log().mean().exp(), {"power": self.options.power})

    def round(self, layer: Layer) -> QTensor:
        assert layer.inputs is not None
        found = []
        for ratio in RATIOS:
            q = _shrunk(layer, ratio)
            off = q.dequantize() - layer.weight
            found.append((float(((off @ layer.inputs.moments) * off).sum()), -ratio, q))
        _, ratio, best = min(found, key=lambda one: one[:2])
        layer.note(ratio=-ratio)
        return best

    def refine(self, block: Block, quantized: Mapping[str, QTensor]) -> Mapping[str, QTensor | Tensor]:
        weights = {name: q.dequantize() for name, q in quantized.items()}
        block.note(error=block.error(weights))
        return {name: bias * 1.001 for name, bias in block.parameters.items() if name.endswith("bias")}


def _shrunk(layer: Layer, ratio: float) -> QTensor:
    def fit(groups: Tensor) -> woqfx.GroupParams:
        return layer.dtype.fit(groups, symmetric=layer.scheme.symmetric, shrink=ratio)

    return quantize_nearest(layer.weight, layer.dtype, layer.scheme, name=layer.name, fit=fit)


class Plugin:
    """Provides it."""

    @woqfx.hookimpl
    def woqfx_algorithms(self) -> list[type[Algorithm]]:
        return [Shrinking]


@contextmanager
def registered() -> Iterator[None]:
    """Have the registry know it."""
    woqfx.register(Plugin(), "shrinking")
    try:
        yield
    finally:
        woqfx.unregister("shrinking")


def tokens(count: int = 4, length: int = 40) -> list[Tensor]:
    """Sequences of random tokens that every tiny model knows."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(3, 120, (length,), generator=draw) for _ in range(count)]


def data(count: int = 4, length: int = 40) -> CalibrationRequest:
    """The request for these tokens."""
    return CalibrationRequest(tokens(count, length), count, length)
