"""AutoAWQ's checkpoints (`quant_method: awq`), and llm-awq's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from woqfx import (
    FileNames,
    Format,
    ModelFiles,
    Obstacle,
    Output,
    Packed,
    PackedModel,
    QTensor,
    Scheme,
    StoredModel,
    StoredWeight,
)
from woqfx_formats.codecs import awq
from woqfx_formats.itrex import is_itrex
from woqfx_formats.linear import kept_linear
from woqfx_formats.modules import Module, modules_with
from woqfx_formats.output import FolderOutput, Specs
from woqfx_formats.settings import SCALE_DTYPES, Settings, group_size
from woqfx_formats.uniform import Judged, misfit, obstacles_of

_FLOATS = tuple(SCALE_DTYPES)
_PARTS = ("qzeros", "scaled_zeros", "scales")


class AWQ(Format):
    """AutoAWQ: GEMM is read and written; GEMV and gemv_fast, which llm-awq writes too, are read."""

    name = "awq"
    title = "AutoAWQ, llm-awq"
    reads = "GEMM, GEMV, gemv_fast (llm-awq)"
    writes = "GEMM"
    checked_with = (
        "the layouts, written independently in numpy; files of auto-round; GPTQModel and vLLM read what is written"
    )

    def detect(self, files: ModelFiles) -> bool:
        """By the config, or, if that names no method, by the shapes of the first quantized layer."""
        method = files.quantization.get("quant_method")
        if method is None:
            return any(map(layout_of, awq_modules(files)[:1]))
        return method == "awq" and not is_itrex(files)

    def open(self, files: ModelFiles) -> StoredModel:
        """See `Format.open`."""
        settings = Settings(files, files.quantization)
        bits = settings.integer("bits", "w_bit")
        if bits not in (None, awq.BITS):
            raise settings.bad("bits", "and AWQ layouts hold 4")
        return PackedModel(files, {module.weight: packed_awq(module, settings) for module in awq_modules(files)})

    def obstacles(self, model: StoredModel) -> list[Obstacle]:
        """See `Format.obstacles`. GEMM has zero points always: those of a symmetric weight are 8."""
        return obstacles_of(model, _judge, _unaligned)

    def output(self, model: StoredModel) -> Output:
        """See `Format.output`."""
        names = FileNames(model)
        return FolderOutput(model, names, _specs, awq.encode_gemm, _quantization(model, names), {})


def _judge(weight: StoredWeight) -> Judged:
    reason = misfit(weight, {awq.BITS}, ordered=False)
    return (reason, awq.DTYPE) if reason else None


def _unaligned(weight: StoredWeight, dtype: str) -> str:
    n, k = weight.shape
    if n % awq.PER_WORD:
        return f"{n} outputs are no multiple of {awq.PER_WORD}"
    width = weight.scheme.group_width(k)
    return f"{k} inputs are no multiple of the group size {width}" if k % width else ""


def _specs(weight: StoredWeight) -> Specs:
    n, k = weight.shape
    words, groups = n // awq.PER_WORD, weight.scheme.group_count(k)
    return {
        "qweight": (torch.int32, (k, words)),
        "qzeros": (torch.int32, (groups, words)),
        "scales": (torch.float16, (groups, n)),
    }


def _quantization(model: StoredModel, names: FileNames) -> dict[str, Any]:
    return {
        "quant_method": "awq",
        "bits": awq.BITS,
        "group_size": next((weight.scheme.group_size for weight in model.weights.values()), -1),
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": kept_linear(model, names) or None,
    }


def awq_modules(files: ModelFiles) -> list[Module]:
    """The quantized layers of a folder."""
    return modules_with(files, "qweight", _PARTS)


def layout_of(module: Module) -> str:
    """Which of the layouts a layer has, judged from shapes and types; empty if none."""
    if "scales" not in module.parts or len(module.shape("qweight")) != 2 or len(module.shape("scales")) != 2:
        return ""
    rows, columns = module.shape("qweight")
    first, second = module.shape("scales")
    if module.dtype("qweight") == torch.int16:
        return "gemv_fast"
    if module.dtype("qweight") != torch.int32:
        return ""
    if columns * awq.PER_WORD == second:
        return "gemm"
    return "gemv" if rows == first and columns * awq.PER_WORD >= second != columns else ""


def packed_awq(module: Module, settings: Settings) -> Packed:
    """How a layer's weight lies in its tensors, which are checked. Raises `CheckpointError`."""
    layout = layout_of(module)
    if not layout:
        raise module.bad("qweight", "which with its scales is none of AWQ's layouts (gemm, gemv, gemv_fast)")
    return _LAYOUTS[layout](module, settings)


def _gemm(module: Module, settings: Settings) -> Packed:
    k, words = module.shape("qweight")
    n = words * awq.PER_WORD
    groups = module.shape("scales")[0]
    module.expect("qzeros", (torch.int32,), (groups, words))
    return _packed(module, settings, (n, k), groups, awq.decode_gemm)


def _gemv(module: Module, settings: Settings) -> Packed:
    n, words = module.shape("qweight")
    k = words * awq.PER_WORD
    groups = _padded_groups(module, settings, k, module.shape("scales")[1])
    module.expect("qzeros", (torch.int32,), (n, module.shape("scales")[1] // awq.PER_WORD))
    module.expect("scales", _FLOATS, (n, module.shape("scales")[1]))
    return _packed(module, settings, (n, k), groups, awq.decode_gemv)


def _gemv_fast(module: Module, settings: Settings) -> Packed:
    quarter, k = module.shape("qweight")
    n = 4 * quarter
    if k % 64:
        raise module.bad("qweight", "and this layout holds multiples of 64 inputs")
    groups = _padded_groups(module, settings, k, module.shape("scales")[0])
    zeros = "scaled_zeros" if "scaled_zeros" in module.parts else "qzeros"
    module.expect("scales", _FLOATS, (module.shape("scales")[0], n))
    module.expect(zeros, (module.dtype("scales"),), module.shape("scales"))
    parts = {"qweight": module.parts["qweight"], "scales": module.parts["scales"], "qzeros": module.parts[zeros]}
    return _packed(replace(module, parts=parts), settings, (n, k), groups, awq.decode_gemv_fast, offsets=True)


_LAYOUTS = {"gemm": _gemm, "gemv": _gemv, "gemv_fast": _gemv_fast}


def _padded_groups(module: Module, settings: Settings, k: int, padded: int) -> int:
    """The number of groups by the config, where the stored tensors have room for more."""
    said = settings.integer("group_size", "q_group_size")
    if said is None or said < -1 or said == 0:
        raise settings.bad("group_size", "which this layout needs")
    groups = 1 if said == -1 else -(-k // said)
    if padded < groups or padded % awq.PER_WORD:
        raise module.bad("scales", f"where {k} inputs in groups of {said} need {groups}, padded to a multiple of 8")
    return groups


def _packed(
    module: Module,
    settings: Settings,
    shape: tuple[int, int],
    groups: int,
    decode: Callable[[Scheme, Mapping[str, Tensor], str], QTensor],
    *,
    offsets: bool = False,
) -> Packed:
    n, k = shape
    if module.dtype("scales") not in _FLOATS or not n or not k:
        raise module.bad("scales", "which is not a floating-point type of scales, or empty")
    scheme = settings.scheme(
        dtype=awq.DTYPE,
        group_size=group_size(settings, k, groups, f"{module.files.label}: {module.prefix[:200]}"),
        symmetric=False,
        scale_dtype=SCALE_DTYPES[module.dtype("scales")],
    )
    weight = StoredWeight(scheme, shape, module.files.float_dtype, offsets=offsets)
    return Packed(weight, module.parts, partial(decode, scheme))
