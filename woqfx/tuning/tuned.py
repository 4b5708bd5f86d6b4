"""A quantized model with other scales, and some of what is kept beside its weights replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from woqfx.format import StoredModel
from woqfx.qtensor import QTensor
from woqfx.resembling import Resembling


class Tuned(Resembling):
    """`model` with what was `learned`: other scales of weights, other kept tensors, in the shapes and types they had.

    `how` goes into its request.
    """

    def __init__(self, model: StoredModel, learned: Mapping[str, Tensor], how: Mapping[str, Any]) -> None:
        super().__init__(model)
        self._learned, self._how = learned, how

    @property
    def request(self) -> Mapping[str, Any]:
        """See `StoredModel.request`: what made it, and how it was tuned."""
        return {**self._model.request, "tuned": dict(self._how)}

    def read_weight(self, name: str) -> QTensor:
        """See `StoredModel.read_weight`."""
        stored = self._model.read_weight(name)
        return replace(stored, scales=self._learned[name]) if name in self._learned else stored

    def read_kept(self, name: str) -> Tensor:
        """See `StoredModel.read_kept`."""
        return self._learned[name] if name in self._learned else self._model.read_kept(name)
