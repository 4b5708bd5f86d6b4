"""What checkpoints of other programs have in common once they are open: the module tree's names, one source."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from torch import Tensor

from woqfx.foreign.files import of_checkpoint
from woqfx.format import StoredModel, StoredWeight
from woqfx.source.base import TensorInfo
from woqfx.source.stored import StoredSource


class ForeignModel(StoredModel):
    """A model of which `_weights` are read packed, and everything else from `_source`, as if nothing was quantized."""

    _source: StoredSource
    _weights: Mapping[str, StoredWeight]

    @property
    def weights(self) -> Mapping[str, StoredWeight]:
        """See `StoredModel.weights`."""
        return self._weights

    @cached_property
    def kept(self) -> Mapping[str, TensorInfo]:
        """See `StoredModel.kept`."""
        return {name: info for name, info in self._source.tensors.items() if name not in self._weights}

    @property
    def aliases(self) -> Mapping[str, str]:
        """See `StoredModel.aliases`."""
        return self._source.aliases

    def sidecars(self) -> Mapping[str, bytes]:
        """See `StoredModel.sidecars`."""
        with of_checkpoint():
            return self._source.sidecars()

    def fingerprint(self) -> str:
        """See `StoredModel.fingerprint`."""
        return self._source.fingerprint()

    def read_kept(self, name: str) -> Tensor:
        """See `StoredModel.read_kept`."""
        with of_checkpoint():
            return self._source.read(name)
