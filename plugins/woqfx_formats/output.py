"""Writing folders in which each quantized layer has tensors of its own: `PREFIX.qweight` and so on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from woqfx import FileNames, Matrix, Output, QTensor, StoredModel, StoredWeight
from woqfx_formats.linear import module_of

Specs = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class FolderOutput(Output):
    """A model as safetensors, in which `specs` and `encode` give the tensors of a quantized layer by their last part.

    Experts are layers, one by one: `names` are those in which transformers saves the model.

    `quantization` is what `config.json` says of it; `extra` are more small files.
    """

    model: StoredModel
    names: FileNames
    specs: Callable[[StoredWeight], Specs]
    encode: Callable[[QTensor], Mapping[str, Tensor]]
    quantization: Mapping[str, Any]
    extra: Mapping[str, Mapping[str, Any]]

    @cached_property
    def items(self) -> Mapping[str, Specs]:
        """See `Output.items`: in the order of the model, layers and what is between them."""
        made: dict[str, Specs] = {}
        for name in sorted((*self.model.weights, *self.model.kept), key=_natural):
            if name in self.model.weights:
                made[name] = {
                    f"{module_of(matrix.name)}.{part}": spec
                    for matrix in self.names.matrices(name)
                    for part, spec in self.layer_specs(name, matrix).items()
                }
            else:
                info = self.model.kept[name]
                made[name] = {self.names.name(name, info.shape): (info.dtype, info.shape)}
        return made

    def parts(self, item: str) -> Mapping[str, Tensor]:
        """See `Output.parts`."""
        if item not in self.model.weights:
            (stored,) = self.items[item]
            return {stored: self.model.read_kept(item)}
        weight = self.model.read_weight(item)
        return {
            f"{module_of(matrix.name)}.{part}": tensor
            for matrix in self.names.matrices(item)
            for part, tensor in self.layer_parts(item, matrix.of(weight)).items()
        }

    def layer_specs(self, name: str, matrix: Matrix) -> Specs:
        """Type and shape of the tensors of a layer that holds the parameter `name`, or a share, by their last part."""
        return self.specs(replace(self.model.weights[name], shape=matrix.shape))

    def layer_parts(self, name: str, weight: QTensor) -> Mapping[str, Tensor]:
        """The tensors that `layer_specs` describes, of that share of the parameter."""
        return self.encode(weight)

    def small_files(self) -> Mapping[str, bytes]:
        """See `Output.small_files`."""
        config = self.model.config or {}  # obstacles are judged by the model that it describes: it is there
        files = {name: data for name, data in self.model.sidecars().items() if name != "woqfx-report.json"}
        files["config.json"] = as_json({**config, "quantization_config": self.quantization})
        return files | {name: as_json(content) for name, content in self.extra.items()}


def as_json(content: Mapping[str, Any]) -> bytes:
    """The same content gives the same bytes."""
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts numbers in dotted names as numbers."""
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in name.split(".")]
