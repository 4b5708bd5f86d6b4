"""A GGUF file as a checkpoint: weights in blocks that a format knows stay packed, the rest is dequantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from woqfx.errors import CheckpointError
from woqfx.foreign.files import of_checkpoint
from woqfx.foreign.model import ForeignModel
from woqfx.format import StoredWeight
from woqfx.layers import LayerInfo, find_layers
from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme
from woqfx.source.gguf import GGUFSource, Rows

#: What GGUF stores without quantizing it.
_DENSE = frozenset({"F32", "F16", "BF16", "F64"})


@dataclass(frozen=True)
class BlockReader:
    """How weights of one GGML type become ours.

    `decode` takes their bytes, uint8 [..., N, bytes of a row], and their name for messages.
    """

    scheme: Scheme
    offsets: bool
    decode: Callable[[Tensor, str], QTensor]


class GGUFModel(ForeignModel):
    """The model in a GGUF file, with `readers` for weights by GGML type.

    Names, config and tokenizer are those of `GGUFSource`. A weight stays packed if it is made of whole rows of tensors
    of one type that has a reader; other quantized tensors are dequantized to float32, and `notes` says why.
    """

    def __init__(self, path: Path, readers: Mapping[str, BlockReader]) -> None:
        self.label = str(path)
        with of_checkpoint():
            self._source: GGUFSource = GGUFSource(path)
        self._readers = readers
        self._rows: dict[str, Rows] = {}
        self._weights: dict[str, StoredWeight] = {}
        self._notes: dict[str, str] = dict.fromkeys(self._source.unexpected, "left out: the model has no place for it")
        layers = {layer.weight: layer for layer in find_layers(self._source.skeleton)}
        for name in self._source.tensors:
            if self._types(name) <= _DENSE:
                continue
            obstacle = self._pack(layers[name]) if name in layers else "only linear layers and embeddings stay packed"
            if obstacle:
                self._notes[name] = f"dequantized from {', '.join(sorted(self._types(name)))}: {obstacle}"

    def _types(self, name: str) -> set[str]:
        return {self._source.file.type_of(piece) for piece in self._source.pieces_of(name)}

    def _pack(self, layer: LayerInfo) -> str:
        """Plan to read a weight packed; or why it cannot be."""
        types = self._types(layer.weight)
        if layer.obstacle:
            return layer.obstacle
        if not types <= set(self._readers):
            return "woqfx has no such blocks"
        if len(types) > 1:
            return "its parts are of several types"
        rows = self._source.rows_of(layer.weight, layer.shape, transposed=layer.transposed)
        if rows is None:
            return "the model's layout of it is not one of whole rows"
        reader = self._readers[next(iter(types))]
        self._rows[layer.weight] = rows
        self._weights[layer.weight] = StoredWeight(reader.scheme, layer.shape, torch.float32, offsets=reader.offsets)
        return ""

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """See `StoredModel.config`."""
        return self._source.config()

    @property
    def notes(self) -> Mapping[str, str]:
        """See `StoredModel.notes`."""
        return self._notes

    def read_weight(self, name: str) -> QTensor:
        """See `StoredModel.read_weight`."""
        rows, weight = self._rows[name], self._weights[name]
        with of_checkpoint():
            pieces = [self._source.file.bytes_of(piece) for piece in rows.pieces]
        data = torch.cat([piece.flatten(0, -2) for piece in pieces])[rows.order]
        reader = self._readers[self._source.file.type_of(rows.pieces[0])]
        read = reader.decode(data.view(*weight.shape[:-1], -1), f"{self.label}: {', '.join(rows.pieces)}")
        if read.shape != weight.shape:
            raise CheckpointError(f"{self.label}: {name} has shape {list(read.shape)}, not {list(weight.shape)}")
        return read
