"""Folders of compressed-tensors: llm-compressor's, and what vLLM, SGLang and transformers load."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from woqfx import Format, ModelFiles, Obstacle, Output, Packed, PackedModel, StoredModel, StoredWeight
from woqfx.errors import CheckpointError, CheckpointWarning
from woqfx_formats import compressed_tensors_writing
from woqfx_formats.codecs import compressed_tensors_integers as integers
from woqfx_formats.codecs import e2m1
from woqfx_formats.codecs.compressed_tensors_integers import DTYPES, IntegerLayout, word_counts
from woqfx_formats.compressed_tensors_config import Group, WeightArgs, group_of, not_done, read_groups
from woqfx_formats.modules import Module, modules_with
from woqfx_formats.settings import SCALE_DTYPES

_SCALES = tuple(SCALE_DTYPES)
_PARTS = ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale")
# What belongs to activations and the cache of keys and values: not a weight's.
_ACTIVATIONS = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "k_scale", "v_scale")


class CompressedTensors(Format):
    """The formats of compressed-tensors for weights of integers and of 4-bit floats."""

    name = "compressed-tensors"
    title = "compressed-tensors (llm-compressor, vLLM)"
    writes = "pack-quantized with 2 to 8 bits, nvfp4, mxfp4"
    checked_with = "compressed-tensors, transformers, vLLM; files of llm-compressor 0.14"
    reads = "pack-quantized with 2 to 8 bits, int-quantized, nvfp4, mxfp4"

    def detect(self, files: ModelFiles) -> bool:
        """See `Format.detect`."""
        if "quant_method" in files.quantization:
            return bool(files.quantization["quant_method"] == self.name)
        return any(name.endswith(".weight_packed") for name in files.tensors)

    def open(self, files: ModelFiles) -> StoredModel:
        """See `Format.open`."""
        groups = read_groups(files.quantization, files.label)
        modules = modules_with(files, "weight_packed", _PARTS)
        modules += [one for one in modules_with(files, "weight", _PARTS) if one.dtype("weight").itemsize == 1]
        packed = {module.weight: _packed(module, group_of(module.prefix, groups, files.label)) for module in modules}
        if not packed:
            raise CheckpointError(
                f"{files.label}: config.json names compressed-tensors, but no tensor is packed; fetch the files again, "
                "or remove quantization_config from config.json if the weights are dense"
            )
        if left := not_done(groups, files.quantization):
            warnings.warn(
                f"{files.label}: its config also rounds {' and '.join(left)}; woqfx reads the weights and computes "
                "with those numbers as they are, which is nearer to the model before it was quantized",
                CheckpointWarning,
                stacklevel=2,
            )
        return PackedModel(files, packed, ignored=_of_activations(files))

    def obstacles(self, model: StoredModel) -> list[Obstacle]:
        """See `Format.obstacles`."""
        return compressed_tensors_writing.obstacles(model)

    def output(self, model: StoredModel) -> Output:
        """See `Format.output`."""
        return compressed_tensors_writing.output(model)


def _of_activations(files: ModelFiles) -> list[str]:
    return [name for name in files.tensors if name.rpartition(".")[2] in _ACTIVATIONS]


def _packed(module: Module, group: Group) -> Packed:
    args = group.weights
    if args.kind == "float":
        return _floats(module, args)
    if args.bits not in DTYPES:
        raise CheckpointError(f"{module.files.label}: {module.prefix[:200]} has weights of {args.bits} bit, not 2 to 8")
    shape = _packed_shape(module, args) if "weight_packed" in module.parts else _int8_shape(module)
    layout = _layout(module, args, shape)
    _check_zeros(module, layout, shape)
    ordered = "weight_g_idx" in module.parts
    if ordered:
        module.expect("weight_g_idx", (torch.int32, torch.int64), (shape[1],))
    scheme = replace(layout.scheme, compute_dtype="int8" if group.rounds_tokens else "fp32")
    stored = StoredWeight(scheme, shape, module.files.float_dtype, ordered=ordered)
    return Packed(stored, module.parts, partial(integers.decode, layout, scheme, shape))


def _packed_shape(module: Module, args: WeightArgs) -> tuple[int, int]:
    """[N, K]: N from the words, K from `weight_shape`, which must agree with both packings' number of words."""
    module.expect("weight_shape", (torch.int64, torch.int32), (2,))
    n, k = (int(size) for size in module.files.read(module.parts["weight_shape"]))
    stored = module.shape("weight_packed")
    module.expect("weight_packed", (torch.int32,), stored)
    if len(stored) != 2 or stored[0] != n or k < 1 or stored[1] not in word_counts(k, args.bits):
        raise module.bad("weight_packed", f"which does not hold a weight of {n} x {k} with {args.bits} bits")
    return n, k


def _int8_shape(module: Module) -> tuple[int, int]:
    stored = module.shape("weight")
    if len(stored) != 2 or module.dtype("weight") != torch.int8:
        raise module.bad("weight", "not an int8 matrix, as its config group says")
    return stored[0], stored[1]


def _layout(module: Module, args: WeightArgs, shape: tuple[int, int]) -> IntegerLayout:
    n, k = shape
    if "weight_scale" not in module.parts:
        raise CheckpointError(f"{module.files.label}: {module.prefix[:200]} has no weight_scale")
    rows, width = 1, args.group_size
    if args.strategy == "tensor":
        allowed = [(), (1,), (1, 1)]
    elif args.strategy == "channel":
        allowed = [(n, 1), (n,)]
    elif args.block is not None:
        rows, width = args.block
        allowed = [(-(-n // rows), -(-k // width))]
    else:
        allowed = [(n, -(-k // min(width, k)))]
    found = module.shape("weight_scale")
    module.expect("weight_scale", _SCALES, found if found in allowed else allowed[-1])
    return IntegerLayout(args.bits, args.symmetric, width, module.dtype("weight_scale"), rows)


def _check_zeros(module: Module, layout: IntegerLayout, shape: tuple[int, int]) -> None:
    scales = module.shape("weight_scale")
    if layout.symmetric:
        return
    if "weight_zero_point" in module.parts and module.dtype("weight_zero_point") == torch.int32:
        wanted: Any = {(words, scales[-1]) for words in word_counts(shape[0], layout.bits)}
        found = module.shape("weight_zero_point")
        module.expect("weight_zero_point", (torch.int32,), found if found in wanted else min(wanted))
    else:
        module.expect("weight_zero_point", (torch.int8,), scales)


def _floats(module: Module, args: WeightArgs) -> Packed:
    if "weight_packed" not in module.parts or args.bits != 4:
        raise CheckpointError(
            f"{module.files.label}: {module.prefix[:200]} has weights of {args.bits}-bit floats; of floats, the 4-bit "
            "ones are read (nvfp4, mxfp4): decompress the others with compressed-tensors first"
        )
    stored = module.shape("weight_packed")
    if module.dtype("weight_packed") != torch.uint8 or len(stored) != 2:
        raise module.bad("weight_packed", "not two 4-bit floats to a byte")
    n, k = stored[0], 2 * stored[1]
    scheme = e2m1.NVFP4 if args.strategy == "tensor_group" else e2m1.MXFP4
    if args.group_size != scheme.group_size or k % scheme.group_size:
        raise module.bad("weight_packed", f"not groups of {scheme.group_size}, which its scales are for")
    grid = (n, k // scheme.group_size)
    if scheme == e2m1.MXFP4:
        module.expect("weight_scale", (torch.uint8,), grid)
    else:
        module.expect("weight_scale", (torch.float8_e4m3fn,), grid)
        found = module.shape("weight_global_scale") if "weight_global_scale" in module.parts else (1,)
        module.expect("weight_global_scale", (torch.float32,), found if found in ((), (1,)) else (1,))
    return Packed(StoredWeight(scheme, (n, k), module.files.float_dtype), module.parts, partial(e2m1.decode, scheme))
