"""Writing folders of compressed-tensors, for vLLM, SGLang and transformers to load."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from woqfx import FileNames, Obstacle, QTensor, Scheme, StoredModel, StoredWeight, registry
from woqfx.errors import CheckpointError
from woqfx_formats.codecs import compressed_tensors_integers as integers
from woqfx_formats.codecs import e2m1
from woqfx_formats.codecs.compressed_tensors_integers import DTYPES, word_counts
from woqfx_formats.linear import kept_linear, module_of
from woqfx_formats.output import FolderOutput, Specs
from woqfx_formats.settings import SCALE_DTYPES

_SCALES = {ours: theirs for theirs, ours in SCALE_DTYPES.items()}


@dataclass(frozen=True)
class Packing:
    """How a weight is packed: the compressor's name and the `weights` of a config group."""

    layout: str
    bits: int
    symmetric: bool
    group_size: int

    @classmethod
    def of(cls, scheme: Scheme, k: int) -> Packing:
        """The one for a scheme that fits."""
        dtype = registry().dtype(scheme.dtype)
        if dtype.levels is None:
            whole_row = scheme.group_size == -1 or scheme.group_size >= k
            return cls("pack-quantized", dtype.bits, scheme.symmetric, -1 if whole_row else scheme.group_size)
        layout = "nvfp4-pack-quantized" if scheme.group_size == 16 else "mxfp4-pack-quantized"
        return cls(layout, 4, True, scheme.group_size)

    def weights(self) -> dict[str, Any]:
        """As `QuantizationArgs` of compressed-tensors reads it, which refuses keys that it does not know."""
        common = {"num_bits": self.bits, "symmetric": self.symmetric, "dynamic": False}
        if self.layout == "pack-quantized":
            size = None if self.group_size == -1 else self.group_size
            return {**common, "type": "int", "strategy": "group" if size else "channel", "group_size": size}
        scales = ("tensor_group", "float8_e4m3fn") if self.group_size == 16 else ("group", "uint8")
        floats = {"type": "float", "strategy": scales[0], "scale_dtype": f"torch.{scales[1]}"}
        return {**common, **floats, "group_size": self.group_size}


def obstacles(model: StoredModel) -> list[Obstacle]:
    """The weights that compressed-tensors has no layer or no layout for. 4-bit floats are read: their scales decide."""
    names = FileNames(model)
    found = []
    for name, weight in model.weights.items():
        if not names.matrices(name):
            found.append(Obstacle(name, "readers of compressed-tensors unpack linear layers alone", None))
        elif reason := _misfit(weight) or _odd_scales(model, names, name):
            found.append(Obstacle(name, reason, _nearest(weight)))
    return found


def _misfit(weight: StoredWeight) -> str:
    scheme, k = weight.scheme, weight.shape[-1]
    if weight.ordered:
        return "its inputs are permuted"
    if weight.offsets:
        return "its groups have offsets, not zero points"
    if k % scheme.group_width(k):
        return f"{k} inputs are no multiple of the group size {scheme.group_size}"
    dtype = registry().dtype(scheme.dtype)
    if dtype.levels is None:
        return "" if dtype.bits in DTYPES else f"{dtype.bits} bits are not packed"
    is_e2m1 = scheme.dtype == e2m1.DTYPE and scheme.group_size in (16, 32)
    return "" if is_e2m1 else f"{scheme.dtype} in groups of {scheme.group_size} is neither integers, nvfp4 nor mxfp4"


def _odd_scales(model: StoredModel, names: FileNames, name: str) -> str:
    weight = model.weights[name]
    if weight.scheme.dtype != e2m1.DTYPE:
        return ""
    read = model.read_weight(name)
    if all(_encode_floats(matrix.of(read)) is not None for matrix in names.matrices(name)):
        return ""
    if weight.scheme.group_size == 32:
        return "its scales are not powers of two, which mxfp4 stores"
    return "its scales are not float8 numbers with one factor, which nvfp4 stores"


def _nearest(weight: StoredWeight) -> Scheme:
    scheme, k = weight.scheme, weight.shape[-1]
    size = scheme.group_size if k % scheme.group_width(k) == 0 else -1
    bits = registry().dtype(scheme.dtype).bits
    return Scheme(DTYPES.get(bits, "int8"), size, symmetric=scheme.symmetric)


def output(model: StoredModel) -> FolderOutput:
    """How `model`, to which there are no obstacles, will be written."""
    names = FileNames(model)
    return FolderOutput(model, names, _specs, _encode, _quantization(model, names), {})


def _specs(weight: StoredWeight) -> Specs:
    n, k = weight.shape
    scheme = weight.scheme
    groups = scheme.group_count(k)
    if scheme.dtype == e2m1.DTYPE:
        packed = {"weight_packed": (torch.uint8, (n, k // 2))}
        if scheme.group_size == 32:
            return {**packed, "weight_scale": (torch.uint8, (n, groups))}
        factor = {"weight_global_scale": (torch.float32, (1,))}
        return {**packed, "weight_scale": (torch.float8_e4m3fn, (n, groups)), **factor}
    bits = registry().dtype(scheme.dtype).bits
    scales = torch.float32 if scheme.double_quant else _SCALES[scheme.scale_dtype]
    specs: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "weight_packed": (torch.int32, (n, word_counts(k, bits)[0])),
        "weight_scale": (scales, (n, groups)),
        "weight_shape": (torch.int64, (2,)),
    }
    if not scheme.symmetric:
        specs["weight_zero_point"] = (torch.int32, (word_counts(n, bits)[0], groups))
    return specs


def _encode(weight: QTensor) -> Mapping[str, Tensor]:
    if weight.dtype.levels is None:
        return integers.encode(weight)
    made = _encode_floats(weight)
    if made is None:
        raise CheckpointError("the scales of a weight have changed since they were looked at: leave the files alone")
    return made


def _encode_floats(weight: QTensor) -> Mapping[str, Tensor] | None:
    return e2m1.encode_mxfp4(weight) if weight.scheme.group_size == 32 else e2m1.encode_nvfp4(weight)


def _quantization(model: StoredModel, names: FileNames) -> dict[str, Any]:
    """The most frequent packing is that of all linear layers, the others name theirs."""
    modules: dict[Packing, list[str]] = defaultdict(list)
    for name, weight in model.weights.items():
        held = [module_of(matrix.name) for matrix in names.matrices(name)]
        modules[Packing.of(weight.scheme, weight.shape[-1])] += held
    ranked = sorted(modules, key=lambda packing: -len(modules[packing]))
    layouts = {packing.layout for packing in ranked}
    groups = {
        f"group_{i}": {
            "targets": modules[packing] if i else ["Linear"],
            "weights": packing.weights(),
            "input_activations": None,
            "output_activations": None,
            "format": packing.layout,
        }
        for i, packing in enumerate(ranked)
    }
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": kept_linear(model, names),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
