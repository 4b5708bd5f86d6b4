"""What is to be told of a block that was quantized: choices that algorithms noted, and errors; as JSON."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from woqfx.algorithm import Layer, Statistics
from woqfx.nearest import quantize_nearest
from woqfx.qtensor import QTensor

#: Rows of a weight on which its errors are measured.
_ROWS = 256


class Notes:
    """The notes of one block, by layer and expert."""

    def __init__(self) -> None:
        self._block: dict[str, Any] = {}
        self._layers: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        self._experts: defaultdict[str, dict[int, dict[str, Any]]] = defaultdict(dict)

    def of_block(self, **facts: Any) -> None:
        """Note something of the block."""
        self._block |= clean(facts)

    def of_layer(self, name: str) -> Callable[..., None]:
        """What notes facts of a layer."""
        notes = self._layers[name].setdefault("notes", {})
        return lambda **facts: notes.update(clean(facts))

    def of_expert(self, name: str, number: int, tokens: int) -> Callable[..., None]:
        """What notes facts of one expert of a stack, which saw so many tokens."""
        notes = self._experts[name].setdefault(number, {"tokens": tokens})
        return lambda **facts: notes.update(clean(facts))

    def errors(self, name: str, errors: Mapping[str, Any]) -> None:
        """Note what `layer_errors` found of a layer."""
        self._layers[name] |= errors

    def to_json(self) -> dict[str, Any]:
        """All notes."""
        layers = {name: dict(facts) for name, facts in self._layers.items()}
        for name, experts in self._experts.items():
            layers[name]["experts"] = [experts[number] for number in sorted(experts)]
        return {"notes": self._block, "layers": layers}


def clean(value: Any) -> Any:
    """A note as JSON: numbers to six digits, tensors as lists, what is not finite as None."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [clean(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def some_rows(weight: Tensor) -> Tensor:
    """The rows [..., n, K] of a weight on which its errors are measured."""
    return weight[..., :: max(1, weight.shape[-2] // _ROWS), :]


def layer_errors(
    before: Tensor, layer: Layer, q: QTensor, inputs: Sequence[Statistics] | None, columns: Tensor | None
) -> dict[str, Any]:
    """Errors of a weight rounded to nearest before and after rescaling, and as it was rounded, on some of its rows.

    `before` are `some_rows` of the weight as it was. `weight_error` is |W - W'|^2 / |W|^2, `output_error` the same of
    its output for the inputs that it got: tr((W - W') M (W - W')^T) / tr(W M W^T). `columns` [..., K] is what its input
    channels were multiplied by. A stack's errors are those of all its experts together.
    """
    after, final = some_rows(layer.weight), some_rows(q.dequantize())
    scale = torch.ones(()) if columns is None else columns.unsqueeze(-2)
    steps = {
        "nearest": (before * scale, _nearest(layer, before) * scale),
        "transform": (after, _nearest(layer, after)),
        "round": (after, final),
    }
    if columns is None:
        del steps["transform"]
    weight = {step: _relative(w / scale, rounded / scale, None) for step, (w, rounded) in steps.items()}
    facts: dict[str, Any] = {"weight_error": weight}
    if inputs is not None:
        facts["tokens"] = max(seen.tokens for seen in inputs)
        moments = [seen.moments for seen in inputs]
        facts["output_error"] = {step: _relative(w, rounded, moments) for step, (w, rounded) in steps.items()}
    return facts


def _nearest(layer: Layer, rows: Tensor) -> Tensor:
    return quantize_nearest(rows, layer.dtype, layer.scheme, name=layer.name).dequantize()


def _relative(weight: Tensor, other: Tensor, moments: Sequence[Tensor] | None) -> float | None:
    def size(rows: Tensor) -> float:
        stack = rows.reshape(-1, *rows.shape[-2:])
        if moments is None:
            return float(stack.square().sum(dtype=torch.float64))
        return sum(
            float(((one @ seen) * one).sum(dtype=torch.float64)) for one, seen in zip(stack, moments, strict=True)
        )

    whole = size(weight)
    found = max(0.0, size(other - weight)) / whole if whole > 0 else 0.0
    return clean(found)  # type: ignore[no-any-return]
