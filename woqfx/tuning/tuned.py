"""A quantized model with some of what is kept beside its weights replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from woqfx.format import StoredModel
from woqfx.resembling import Resembling


class Tuned(Resembling):
    """`model` with other kept tensors, in the shapes and types that those had. `how` goes into its request."""

    def __init__(self, model: StoredModel, kept: Mapping[str, Tensor], how: Mapping[str, Any]) -> None:
        super().__init__(model)
        self._how = how
        self._kept = {name: tensor.to(model.kept[name].dtype) for name, tensor in kept.items()}

    @property
    def request(self) -> Mapping[str, Any]:
        """See `StoredModel.request`: what made it, and how it was tuned."""
        return {**self._model.request, "tuned": dict(self._how)}

    def read_kept(self, name: str) -> Tensor:
        """See `StoredModel.read_kept`."""
        return self._kept[name] if name in self._kept else self._model.read_kept(name)
