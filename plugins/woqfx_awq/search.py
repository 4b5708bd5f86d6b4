"""The search for the scales of one feed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from woqfx import GroupParams, fit_to_data, split_groups
from woqfx_awq.fed import FedWeight, input_magnitudes, weight_magnitudes

_Map = Callable[[Callable[[int], float], Sequence[int]], list[float]]

#: How far ranges are clipped while scales are compared: as good a judge as the full search of `round`, and quicker.
_RATIOS = (1.0, 0.9, 0.8)
#: Weights worked on at a time: a few copies of this many float32 stay in the cache.
_CHUNK = 1 << 19
#: Magnitudes are held above this share of their mean: what calibration never showed may come all the same.
_LEAST = 1e-3
#: The first step between exponents, in points of the grid.
_COARSE = 4


@dataclass(frozen=True)
class Found:
    """The best scales, float32 [size], and the exponent that made them: None if 1 throughout is best.

    The errors are the mean squares of what rounding changes in the outputs, with the scales and without, as shares
    of the outputs' own mean square.
    """

    scale: Tensor
    exponent: float | None
    error: float
    error_before: float


@dataclass(frozen=True)
class Search:
    """How scales are searched for; the fields are AWQ's options."""

    grid: int
    duo_scaling: bool
    clip: bool

    def best(self, fed: Sequence[FedWeight], size: int, mapping: _Map) -> Found:
        """The scales of the least output error among the grid's and 1. `mapping` is `Block.map`."""
        x, w = input_magnitudes(fed, size), weight_magnitudes(fed, size)
        ones = torch.ones(size)
        scales = {point: self._scale(x, w, point / self.grid) for point in range(self.grid + 1)}
        errors: dict[int, float] = {}

        def measure(points: Sequence[int]) -> int:
            new = [point for point in points if point in scales and point not in errors]
            errors.update(zip(new, mapping(lambda point: self.error(fed, scales[point]), new), strict=True))
            return min(errors, key=lambda point: (errors[point], point))

        whole = sum(output_error(one, -one.weight, one.inputs.moments) for one in fed)
        before, step = self.error(fed, ones) / whole, _COARSE
        best = measure(range(0, self.grid + 1, step))
        while step > 1:
            step //= 2
            best = measure((best - step, best + step))
        if not errors[best] / whole < before:
            return Found(ones, None, before, before)
        return Found(scales[best], best / self.grid, errors[best] / whole, before)

    def error(self, fed: Sequence[FedWeight], scale: Tensor) -> float:
        """The sum over tokens and outputs of the square that rounding at these scales changes."""
        return sum(self._error(one, torch.where(one.index < 0, 1.0, scale[one.index.clamp(min=0)])) for one in fed)

    def _scale(self, x: Tensor, w: Tensor, exponent: float) -> Tensor:
        scale = _held(x) ** exponent
        if self.duo_scaling:
            scale = scale / _held(w) ** (1 - exponent)
        return scale / scale.log().mean().exp()

    def _error(self, one: FedWeight, scale: Tensor) -> float:
        moments = one.inputs.moments / scale / scale.unsqueeze(-1)
        width, total = one.scheme.group_width(len(scale)), 0.0
        for rows in torch.split(one.weight, max(1, _CHUNK // len(scale))):
            weight = rows * scale
            off = torch.empty_like(weight)
            for _, columns, groups in split_groups(weight, width):
                params = self._fit(groups, moments.diagonal()[columns].view(groups.shape[-2:]), one)
                decoded = one.dtype.decode(one.dtype.encode(groups, params), params)
                off[:, columns] = decoded.sub_(groups).flatten(-2)
            total += output_error(one, off, moments)
        return total

    def _fit(self, groups: Tensor, importance: Tensor, one: FedWeight) -> GroupParams:
        ratios = _RATIOS if self.clip else _RATIOS[:1]
        return fit_to_data(groups, importance, one.dtype, one.scheme, ratios=ratios, refits=0)


def output_error(one: FedWeight, off: Tensor, moments: Tensor) -> float:
    """The sum over tokens and rows of the square of x off^T, for a difference of weights [n, K] and moments of x."""
    return float(((off @ moments) * off).sum(dtype=torch.float64)) * one.inputs.tokens


def _held(magnitude: Tensor) -> Tensor:
    return magnitude.clamp(min=max(_LEAST * float(magnitude.mean()), torch.finfo(torch.float32).tiny))
