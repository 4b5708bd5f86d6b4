"""Writing folders of bitsandbytes: nf4 and fp4 in its blocks, for transformers and its own library to load."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from woqfx import FileNames, Matrix, Obstacle, QTensor, Scheme, StoredModel, StoredWeight
from woqfx_formats.codecs import bitsandbytes4
from woqfx_formats.codecs.bitsandbytes4 import BLOCK_SIZES, DTYPES, NESTED_BLOCK
from woqfx_formats.linear import kept_linear
from woqfx_formats.output import FolderOutput, Specs

_DTYPES = {ours: theirs for theirs, ours in DTYPES.items()}


def obstacles(model: StoredModel) -> list[Obstacle]:
    """The weights that bitsandbytes has no layer or no blocks for."""
    names = FileNames(model)
    found = []
    for name, weight in model.weights.items():
        if len(names.matrices(name)) != 1:
            found.append(Obstacle(name, "bitsandbytes has 4-bit weights of linear layers alone", None))
        elif reason := _misfit(weight):
            found.append(Obstacle(name, reason, _nearest(weight.shape[-1])))
    return found


def _misfit(weight: StoredWeight) -> str:
    scheme, k = weight.scheme, weight.shape[-1]
    if scheme.dtype not in _DTYPES:
        return f"{scheme.dtype} is not one of its tables, {' and '.join(_DTYPES)}"
    width = scheme.group_width(k)
    if width not in BLOCK_SIZES or k % width:
        return f"groups of {width} in rows of {k} are not its blocks, {', '.join(map(str, BLOCK_SIZES))} long"
    return "its inputs are permuted" if weight.ordered else ""


def _nearest(k: int) -> Scheme | None:
    width = next((size for size in (64, 32) if k % size == 0), None)
    return None if width is None else Scheme("nf4", width, scale_dtype="fp32")


class BitsAndBytesOutput(FolderOutput):
    """A folder in which each layer also has the JSON object that describes it."""

    @classmethod
    def of(cls, model: StoredModel) -> BitsAndBytesOutput:
        """How `model`, to which there are no obstacles, will be written."""
        names = FileNames(model)
        return cls(model, names, _specs, _encode, _quantization(model, names), {})

    def layer_specs(self, name: str, matrix: Matrix) -> Specs:
        """See `FolderOutput.layer_specs`."""
        texts = {part: (text.dtype, tuple(text.shape)) for part, text in self._texts[name].items()}
        return {**super().layer_specs(name, matrix), **texts}

    def layer_parts(self, name: str, weight: QTensor) -> Mapping[str, Tensor]:
        """See `FolderOutput.layer_parts`."""
        return {**super().layer_parts(name, weight), **self._texts[name]}

    @cached_property
    def _texts(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The objects of all layers: how long they are depends on numbers in them, so that the weights are read."""
        return {
            name: _under_weight(bitsandbytes4.encode_state(self.model.read_weight(name), weight.float_dtype))
            for name, weight in self.model.weights.items()
        }


def _specs(weight: StoredWeight) -> Specs:
    n, k = weight.shape
    scales = n * k // weight.scheme.group_width(k)
    specs: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "": (torch.uint8, (n * k // 2, 1)),
        "quant_map": (torch.float32, (16,)),
        "absmax": (torch.uint8 if weight.scheme.double_quant else torch.float32, (scales,)),
    }
    if weight.scheme.double_quant:
        specs["nested_absmax"] = (torch.float32, (-(-scales // NESTED_BLOCK),))
        specs["nested_quant_map"] = (torch.float32, (256,))
    return _under_weight(specs)


def _encode(weight: QTensor) -> Mapping[str, Tensor]:
    return _under_weight(bitsandbytes4.encode(weight))


def _under_weight(parts: Mapping[str, Any]) -> dict[str, Any]:
    """`weight` itself, `weight.absmax` and so on."""
    return {f"weight.{suffix}" if suffix else "weight": part for suffix, part in parts.items()}


def _quantization(model: StoredModel, names: FileNames) -> dict[str, Any]:
    schemes = [weight.scheme for weight in model.weights.values()]
    dtypes = [weight.float_dtype for weight in model.weights.values()]
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": _DTYPES[schemes[0].dtype] if schemes else "nf4",
        "bnb_4bit_use_double_quant": any(scheme.double_quant for scheme in schemes),
        "bnb_4bit_compute_dtype": str(dtypes[0] if dtypes else torch.float32).removeprefix("torch."),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": kept_linear(model, names),
    }
