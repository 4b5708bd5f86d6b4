"""Writing folders in which each quantized layer has tensors of its own: `PREFIX.qweight` and so on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from woqfx import Output, QTensor, StoredModel, StoredWeight

Specs = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class FolderOutput(Output):
    """A model as safetensors, in which `specs` and `encode` give the tensors of a quantized layer by their last part.

    `quantization` is what `config.json` says of it; `extra` are more small files.
    """

    model: StoredModel
    specs: Callable[[StoredWeight], Specs]
    encode: Callable[[QTensor], Mapping[str, Tensor]]
    quantization: Mapping[str, Any]
    extra: Mapping[str, Mapping[str, Any]]

    @cached_property
    def items(self) -> Mapping[str, Specs]:
        """See `Output.items`: in the order of the model, layers and what is between them."""
        made: dict[str, Specs] = {}
        for name in sorted((*self.model.weights, *self.model.kept), key=_natural):
            weight = self.model.weights.get(name)
            if weight is None:
                info = self.model.kept[name]
                made[name] = {name: (info.dtype, info.shape)}
            else:
                made[name] = {f"{prefix(name)}.{part}": spec for part, spec in self.layer_specs(name).items()}
        return made

    def parts(self, item: str) -> Mapping[str, Tensor]:
        """See `Output.parts`."""
        if item not in self.model.weights:
            return {item: self.model.read_kept(item)}
        return {f"{prefix(item)}.{part}": tensor for part, tensor in self.layer_parts(item).items()}

    def layer_specs(self, name: str) -> Specs:
        """Type and shape of the tensors of a quantized layer, by their last part."""
        return self.specs(self.model.weights[name])

    def layer_parts(self, name: str) -> Mapping[str, Tensor]:
        """The tensors that `layer_specs` describes."""
        return self.encode(self.model.read_weight(name))

    def small_files(self) -> Mapping[str, bytes]:
        """See `Output.small_files`."""
        config = self.model.config or {}  # obstacles are judged by the model that it describes: it is there
        files = {name: data for name, data in self.model.sidecars().items() if name != "woqfx-report.json"}
        files["config.json"] = as_json({**config, "quantization_config": self.quantization})
        return files | {name: as_json(content) for name, content in self.extra.items()}


def prefix(weight: str) -> str:
    """The module of a weight."""
    return weight.removesuffix(".weight")


def as_json(content: Mapping[str, Any]) -> bytes:
    """The same content gives the same bytes."""
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts numbers in dotted names as numbers."""
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in name.split(".")]
