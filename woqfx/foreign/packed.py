"""A folder in which layers are quantized and the rest is as it was: from stored names to the module tree's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from woqfx.config import build, harmless
from woqfx.errors import CheckpointError
from woqfx.foreign.files import ModelFiles, of_checkpoint
from woqfx.foreign.model import ForeignModel
from woqfx.format import StoredWeight
from woqfx.layers import find_layers
from woqfx.qtensor import QTensor
from woqfx.source.base import TensorInfo
from woqfx.source.conversion import Conversion
from woqfx.source.metadata import normalized_config, prevailing_dtype
from woqfx.source.stored import StoredSource


@dataclass(frozen=True)
class Packed:
    """How one quantized weight lies in a folder.

    `parts` names its stored tensors by what `decode` calls them. `decode` is given those tensors and the weight's name
    for messages, and returns a `QTensor` of `weight`'s scheme and shape; it raises `CheckpointError` for values that no
    writer writes. Shapes and types of the parts are to be checked before a `Packed` is made: they are in the headers.
    """

    weight: StoredWeight
    parts: Mapping[str, str]
    decode: Callable[[Mapping[str, Tensor], str], QTensor]


class PackedModel(ForeignModel):
    """The model in `files`, whose quantized weights `packed` describes by stored name (`model...q_proj.weight`).

    Tensors that are no part of these are kept under their own names; those of `ignored` mean nothing here. Names and
    pieces become the module tree's by transformers' own rules: older names, prefixes, experts that are stored one by
    one. Raises `CheckpointError` if tensors are missing, left over or of wrong shapes.
    """

    def __init__(self, files: ModelFiles, packed: Mapping[str, Packed], *, ignored: Collection[str] = ()) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.label = files.label
        self._files, self._packed = files, packed
        taken = {stored for one in packed.values() for stored in one.parts.values()} | set(ignored)
        stored = {name: info for name, info in files.tensors.items() if name not in taken}
        for name, one in packed.items():
            if name in stored:
                raise CheckpointError(f"{files.where(name)} stands beside {', '.join(one.parts.values())}: remove one")
            stored[name] = TensorInfo(one.weight.shape, one.weight.float_dtype)
        skeleton = build(harmless(files.config), len(stored), self.label)
        with of_checkpoint():
            self._conversion = Conversion(skeleton, get_model_conversion_mapping(skeleton), stored)
            self._check_left_over()
            self._source: _Kept = _Kept(skeleton, files, self._in_place(skeleton), self._read)
        self._weights = {name: weight for name in self._source.tensors if (weight := self._weight(name)) is not None}

    def _check_left_over(self) -> None:
        for name in self._conversion.unexpected:
            if name in self._packed:
                raise CheckpointError(f"{self.label}: the model has no place for the quantized {name[:200]}")
            # AutoGPTQ and its like give every layer a bias.
            module, _, leaf = name.rpartition(".")
            if leaf == "bias" and f"{module}.weight" in self._packed and bool(self._files.read(name).any()):
                raise CheckpointError(f"{self._files.where(name)} is not zero, and the model has no place for it")

    def _in_place(self, skeleton: Any) -> Mapping[str, TensorInfo]:
        """What the folder gives in the shapes of parameters: some layers hold their weight as [K, N]."""
        transposed = {layer.weight for layer in find_layers(skeleton) if layer.transposed}
        return {
            name: replace(info, shape=info.shape[::-1]) if name in transposed and self._pieces(name) else info
            for name, info in self._conversion.tensors.items()
        }

    def _pieces(self, name: str) -> list[Packed]:
        """The quantized weights that make up a parameter; none if it is kept."""
        origins = self._conversion.origins(name)
        pieces = [self._packed[origin] for origin in origins if origin in self._packed]
        if pieces and len(pieces) < len(origins):
            odd = next(origin for origin in origins if origin not in self._packed)
            raise CheckpointError(f"{self.label}: {name} is put together from quantized weights, but {odd} is not one")
        return pieces

    def _weight(self, name: str) -> StoredWeight | None:
        stored = [held for held in self._source.holders(name) if self._pieces(held)]
        if not stored:
            return None
        if len(self._source.holders(name)) > 1:
            raise CheckpointError(
                f"{self.label}: {' and '.join(self._source.holders(name))} are one tensor by the config, but the files "
                'hold each, quantized; set "tie_word_embeddings": false in config.json if both are meant'
            )
        first, *others = self._pieces(stored[0])
        if any(other.weight.scheme != first.weight.scheme for other in others):
            raise CheckpointError(f"{self.label}: the {1 + len(others)} parts of {name} are quantized differently")
        shape = self._conversion.tensors[stored[0]].shape
        return replace(first.weight, shape=shape, ordered=any(one.weight.ordered for one in (first, *others)))

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """See `StoredModel.config`."""
        skeleton: Any = self._source.skeleton
        infos = [TensorInfo(weight.shape, weight.float_dtype) for weight in self._weights.values()]
        infos += self.kept.values()
        return normalized_config(skeleton.config, type(skeleton).__name__, prevailing_dtype(infos))

    @property
    def request(self) -> Mapping[str, Any]:
        """See `StoredModel.request`: what the other program noted of it."""
        return {"quantization_config": dict(self._files.quantization)}

    @property
    def notes(self) -> Mapping[str, str]:
        """See `StoredModel.notes`."""
        return dict.fromkeys(self._conversion.unexpected, "left out: the model has no place for it")

    def read_weight(self, name: str) -> QTensor:
        """See `StoredModel.read_weight`."""
        (stored,) = self._source.holders(name)
        decoded = {origin: self._decode(origin) for origin in self._conversion.origins(stored)}
        first, *others = decoded.values()
        if not others:
            return first
        if first.order is not None or any(other.order is not None for other in others):
            decoded = {origin: one.ordered() for origin, one in decoded.items()}
        # Along with the rows of the weight go those of its codes and scales: the same rules put them together.
        parts = {origin: one.tensors() for origin, one in decoded.items()}
        made = {suffix: self._together(stored, suffix, parts) for suffix in next(iter(parts.values()))}
        weight = self._weights[name]
        return QTensor.from_tensors(first.dtype, weight.scheme, weight.shape, made, name=f"{self.label}: {name}")

    def _together(self, stored: str, suffix: str, parts: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """One part of a weight, from those of its pieces."""
        if suffix != "order":
            return self._conversion.build(stored, lambda origin: parts[origin][suffix])
        # As if it were a weight of one row. Pieces that end up beside each other must agree.
        rows = self._conversion.build(stored, lambda origin: parts[origin][suffix].unsqueeze(0))
        if not torch.equal(rows, rows[..., :1, :].expand_as(rows)):
            raise CheckpointError(
                f"{self.label}: {', '.join(list(parts)[:2])}... are rows of one weight in this version of "
                "transformers, but their inputs have different orders (act-order): take a checkpoint without act-order"
            )
        return rows[..., 0, :].contiguous()

    def _decode(self, origin: str) -> QTensor:
        packed = self._packed[origin]
        parts = {role: self._files.read(stored) for role, stored in packed.parts.items()}
        made = packed.decode(parts, f"{self.label}: {origin}")
        assert (made.shape, made.scheme) == (packed.weight.shape, packed.weight.scheme)
        return made

    def _read(self, name: str) -> Tensor:
        return self._conversion.build(name, self._files.read)


class _Kept(StoredSource):
    """The tensors of the module tree, wherever a tied one is stored."""

    def __init__(
        self, skeleton: Any, files: ModelFiles, available: Mapping[str, TensorInfo], read: Callable[[str], Tensor]
    ) -> None:
        self._files, self._fetch = files, read
        super().__init__(skeleton, files.label, available)

    def holders(self, name: str) -> list[str]:
        """The names under which a tensor is stored."""
        return self._stored[name]

    def fetch(self, name: str) -> Tensor:
        return self._fetch(name)

    def fingerprint(self) -> str:
        return self._files.fingerprint()

    def sidecars(self) -> Mapping[str, bytes]:
        return self._files.sidecars()
