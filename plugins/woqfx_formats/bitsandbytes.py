"""Folders that bitsandbytes quantized: nf4 and fp4, and LLM.int8()."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import torch

from woqfx import Format, ModelFiles, Obstacle, Output, Packed, PackedModel, StoredModel, StoredWeight
from woqfx.errors import CheckpointError
from woqfx_formats.bitsandbytes_writing import BitsAndBytesOutput, obstacles
from woqfx_formats.codecs import bitsandbytes4, bitsandbytes8
from woqfx_formats.codecs.bitsandbytes4 import MAX_STATE, STATE, QuantState
from woqfx_formats.modules import Module, modules_with

_THRESHOLD = 6.0  # of LLM.int8(), where the config says nothing


class BitsAndBytes(Format):
    """Weights of bitsandbytes, as transformers saves them."""

    name = "bitsandbytes"
    title = "bitsandbytes"
    writes = "nf4 and fp4, plain and double-quantized scales"
    checked_with = "bitsandbytes, transformers"
    reads = "nf4 and fp4, plain and double-quantized scales; LLM.int8()"

    def detect(self, files: ModelFiles) -> bool:
        """See `Format.detect`."""
        if "quant_method" in files.quantization:
            return bool(files.quantization["quant_method"] == self.name)
        return any(map(_is_ours, files.tensors))

    def open(self, files: ModelFiles) -> StoredModel:
        """See `Format.open`."""
        packed = {}
        for name in files.tensors:
            weight, _, quant_type = name.rpartition(f".{STATE}")
            if weight:
                packed[weight] = _four_bits(files, weight, quant_type)
        for module in modules_with(files, "SCB", ("weight", "weight_format")):
            packed[module.weight] = _eight_bits(files, module)
        if not packed:
            raise CheckpointError(
                f"{files.label} names bitsandbytes in config.json, but none of its tensors is quantized by it; fetch "
                "the files again, or remove quantization_config from config.json if the weights are dense"
            )
        return PackedModel(files, packed)

    def obstacles(self, model: StoredModel) -> list[Obstacle]:
        """See `Format.obstacles`."""
        return obstacles(model)

    def output(self, model: StoredModel) -> Output:
        """See `Format.output`."""
        return BitsAndBytesOutput.of(model)


def _is_ours(name: str) -> bool:
    return f".{STATE}" in name or name.endswith(".SCB")


def _four_bits(files: ModelFiles, weight: str, quant_type: str) -> Packed:
    parts = {STATE: f"{weight}.{STATE}{quant_type}", "": weight}
    info = files.tensors[parts[STATE]]
    where = files.where(parts[STATE])
    if info.dtype != torch.uint8 or len(info.shape) != 1 or info.shape[0] > MAX_STATE:
        raise CheckpointError(f"{where} is {info.dtype} {list(info.shape)}, not a short text in bytes")
    state = QuantState.parse(bytes(files.read(parts[STATE]).tolist()), where)
    if quant_type != state.quant_type:
        raise CheckpointError(f"{where} speaks of {state.quant_type!r:.80}, against its name")
    wanted = state.parts()
    parts |= {suffix: f"{weight}.{suffix}" for suffix in wanted}
    module = Module(files, weight, {role: name for role, name in parts.items() if name in files.tensors})
    for suffix, (dtype, shape) in wanted.items():
        module.expect(suffix, (dtype,), shape)
    _check_codes(module, state)
    nested_map = files.read(parts["nested_quant_map"]) if "nested_quant_map" in wanted else None
    scheme = state.scheme(nested_map)
    stored = StoredWeight(scheme, state.shape, state.float_dtype)
    return Packed(stored, parts, partial(bitsandbytes4.decode, state, scheme))


def _check_codes(module: Module, state: QuantState) -> None:
    """The codes may be seen as any type (`bnb_4bit_quant_storage`): their number of bytes is what counts."""
    n, k = state.shape
    if "" not in module.parts:
        raise CheckpointError(f"{module.files.label}: {module.prefix[:200]} itself is missing, its scales are there")
    if prod(module.shape("")) * module.dtype("").itemsize != -(-n * k // 2):
        raise module.bad("", f"where {n} x {k} weights of 4 bits need {-(-n * k // 2)} bytes")


def _eight_bits(files: ModelFiles, module: Module) -> Packed:
    if "weight" not in module.parts or len(module.shape("weight")) != 2:
        raise CheckpointError(f"{files.where(module.parts['SCB'])} stands beside no matrix {module.weight[:200]}")
    n, k = module.shape("weight")
    module.expect("weight", (torch.int8,), (n, k))
    module.expect("SCB", (torch.float32,), (n,))
    if "weight_format" in module.parts:
        module.expect("weight_format", (torch.uint8,), ())
    scheme = bitsandbytes8.scheme(_threshold(files))
    roles = {"" if part == "weight" else part: name for part, name in module.parts.items()}
    return Packed(StoredWeight(scheme, (n, k), files.float_dtype), roles, partial(bitsandbytes8.decode, scheme))


def _threshold(files: ModelFiles) -> float:
    found: Any = files.quantization.get("llm_int8_threshold", _THRESHOLD)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < 1e6:
        raise CheckpointError(f"{files.label}: llm_int8_threshold {found!r:.80} is not a number, 0 or above")
    return float(found)
