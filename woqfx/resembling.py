"""A quantized model that is another one, but for what is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from woqfx.format import StoredModel, StoredWeight
from woqfx.qtensor import QTensor
from woqfx.source.base import TensorInfo


class Resembling(StoredModel):
    """Says what `model` says; a subclass overrides what it changes."""

    def __init__(self, model: StoredModel) -> None:
        self.label = model.label
        self._model = model

    @property
    def config(self) -> Mapping[str, Any] | None:
        """See `StoredModel.config`."""
        return self._model.config

    @property
    def weights(self) -> Mapping[str, StoredWeight]:
        """See `StoredModel.weights`."""
        return self._model.weights

    @property
    def kept(self) -> Mapping[str, TensorInfo]:
        """See `StoredModel.kept`."""
        return self._model.kept

    @property
    def aliases(self) -> Mapping[str, str]:
        """See `StoredModel.aliases`."""
        return self._model.aliases

    @property
    def notes(self) -> Mapping[str, str]:
        """See `StoredModel.notes`."""
        return self._model.notes

    @property
    def request(self) -> Mapping[str, Any]:
        """See `StoredModel.request`."""
        return self._model.request

    @property
    def errors(self) -> Mapping[str, float | None]:
        """See `StoredModel.errors`."""
        return self._model.errors

    def sidecars(self) -> Mapping[str, bytes]:
        """See `StoredModel.sidecars`."""
        return self._model.sidecars()

    def read_weight(self, name: str) -> QTensor:
        """See `StoredModel.read_weight`."""
        return self._model.read_weight(name)

    def read_kept(self, name: str) -> Tensor:
        """See `StoredModel.read_kept`."""
        return self._model.read_kept(name)
