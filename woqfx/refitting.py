"""A quantized model in which some weights are quantized again, because a format cannot hold them as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from woqfx.errors import PlanError
from woqfx.format import Format, Obstacle, StoredModel, StoredWeight
from woqfx.layers import LayerInfo, find_layers
from woqfx.loading import build_from
from woqfx.nearest import quantize_nearest
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.quality import dense_error, relative_error
from woqfx.resembling import Resembling
from woqfx.scheme import Scheme
from woqfx.source.base import TensorInfo


def fit_into(model: StoredModel, form: Format, *, requantize: bool) -> StoredModel:
    """`model` as `form` can hold it: as it is, or, if `requantize` allows that, with weights quantized again.

    Raises `PlanError` with every obstacle otherwise, before any weight is read.
    """
    obstacles = form.obstacles(model)
    if obstacles and not requantize:
        raise PlanError(_problems(form, obstacles))
    if not obstacles:
        return model
    refitted = Refitted(model, {obstacle.name: obstacle.instead for obstacle in obstacles})
    if left := form.obstacles(refitted):
        raise PlanError(_problems(form, left))
    return refitted


def _problems(form: Format, obstacles: Sequence[Obstacle]) -> list[str]:
    about: dict[tuple[str, Scheme | None], list[str]] = {}
    for obstacle in obstacles:
        about.setdefault((obstacle.reason, obstacle.instead), []).append(obstacle.name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {form.name} cannot hold it: {reason}; "
        f"--requantize (requantize=True) makes it {_described(instead)}, with some loss"
        for (reason, instead), names in about.items()
    ]


def _described(scheme: Scheme | None) -> str:
    if scheme is None:
        return "floating point"
    groups = "a group for each row" if scheme.group_size == -1 else f"groups of {scheme.group_size}"
    return f"{scheme.dtype}, {groups}, {'symmetric' if scheme.symmetric else 'asymmetric'}, {scheme.scale_dtype} scales"


class Refitted(Resembling):
    """`model` with some weights in other schemes, or, where that is None, in floating point.

    `losses` holds what that cost each weight that was read: |W - W'| / |W|.
    """

    def __init__(self, model: StoredModel, changes: Mapping[str, Scheme | None]) -> None:
        super().__init__(model)
        self.losses: dict[str, float] = {}
        self._changes = changes

    @cached_property
    def weights(self) -> Mapping[str, StoredWeight]:
        """See `StoredModel.weights`."""
        made = {}
        for name, weight in self._model.weights.items():
            scheme = self._changes.get(name, weight.scheme)
            if scheme is not None:
                changed = replace(weight, scheme=scheme, ordered=False, offsets=False)
                made[name] = changed if name in self._changes else weight
        return made

    @cached_property
    def kept(self) -> Mapping[str, TensorInfo]:
        """See `StoredModel.kept`."""
        return {**self._model.kept, **{name: self._dense_info(name) for name in self._dense}}

    @cached_property
    def _dense(self) -> Mapping[str, LayerInfo]:
        """The layers whose weights become floating point."""
        names = [name for name, scheme in self._changes.items() if scheme is None]
        if not names:
            return {}
        layers = {layer.weight: layer for layer in find_layers(build_from(self._model))}
        return {name: layers[name] for name in names}

    def _dense_info(self, name: str) -> TensorInfo:
        weight = self._model.weights[name]
        return TensorInfo(weight.shape[::-1] if self._dense[name].transposed else weight.shape, weight.float_dtype)

    @property
    def errors(self) -> Mapping[str, float | None]:
        """See `StoredModel.errors`: known of weights that are as they were."""
        return {name: error for name, error in self._model.errors.items() if name not in self._changes}

    def fingerprint(self) -> str:
        """See `StoredModel.fingerprint`."""
        return self._model.fingerprint()

    def read_weight(self, name: str) -> QTensor:
        """See `StoredModel.read_weight`."""
        stored = self._model.read_weight(name)
        scheme = self._changes.get(name)
        if scheme is None:
            return stored
        weight = stored.dequantize()
        made = quantize_nearest(weight, registry().dtype(scheme.dtype), scheme, name=f"{self.label}: {name}")
        self.losses[name] = relative_error(weight, made)
        return made

    def read_kept(self, name: str) -> Tensor:
        """See `StoredModel.read_kept`."""
        if name not in self._dense:
            return self._model.read_kept(name)
        weight = self._model.read_weight(name).dequantize()
        made = weight.to(self._model.weights[name].float_dtype)
        self.losses[name] = dense_error(weight, made)
        return made.T.contiguous() if self._dense[name].transposed else made
