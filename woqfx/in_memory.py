"""A quantized model that was never written: what a run has just made, read as a checkpoint is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from woqfx.done import Done
from woqfx.errors import CheckpointError
from woqfx.format import StoredModel, StoredWeight
from woqfx.planned import Plan
from woqfx.qtensor import QTensor
from woqfx.source import Source, TensorInfo


class QuantizedInMemory(StoredModel):
    """The tensors of a finished run of `plan` on `source`."""

    def __init__(self, source: Source, plan: Plan, done: Iterable[Done]) -> None:
        self.label = source.label
        self._config, self._aliases = source.config(), dict(source.aliases)
        self._results = {step.name: step.result for step in done}
        self._weights = {
            name: StoredWeight(result.scheme, tuple(result.shape), plan.quantized[name].float_dtype)
            for name, result in self._results.items()
            if isinstance(result, QTensor)
        }

    @property
    def config(self) -> Mapping[str, Any] | None:
        """See `woqfx.StoredModel.config`."""
        return self._config

    @property
    def weights(self) -> Mapping[str, StoredWeight]:
        """See `woqfx.StoredModel.weights`."""
        return self._weights

    @property
    def kept(self) -> Mapping[str, TensorInfo]:
        """See `woqfx.StoredModel.kept`."""
        return {
            name: TensorInfo(tuple(result.shape), result.dtype)
            for name, result in self._results.items()
            if isinstance(result, Tensor)
        }

    @property
    def aliases(self) -> Mapping[str, str]:
        """See `woqfx.StoredModel.aliases`."""
        return self._aliases

    def read_weight(self, name: str) -> QTensor:
        """See `woqfx.StoredModel.read_weight`."""
        found = self._results.get(name)
        if not isinstance(found, QTensor):
            raise CheckpointError(f"{self.label}: {name} was not quantized")
        return found

    def read_kept(self, name: str) -> Tensor:
        """See `woqfx.StoredModel.read_kept`."""
        found = self._results.get(name)
        if not isinstance(found, Tensor):
            raise CheckpointError(f"{self.label}: {name} was not kept")
        return found
