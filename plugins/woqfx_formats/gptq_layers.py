"""Layers in GPTQ's layout, whichever program's folder they are in."""

from __future__ import annotations

from functools import partial

import torch

from woqfx import ModelFiles, Packed, StoredWeight
from woqfx_formats.codecs import gptq
from woqfx_formats.codecs.gptq import ZeroPoints
from woqfx_formats.modules import Module, modules_with
from woqfx_formats.settings import SCALE_DTYPES, Settings, group_size

_PARTS = ("qzeros", "scales", "g_idx")


def gptq_modules(files: ModelFiles) -> list[Module]:
    """The quantized layers of a folder."""
    return modules_with(files, "qweight", _PARTS)


def is_gptq(module: Module) -> bool:
    """Whether a layer has GPTQ's layout, judged from shapes and types."""
    if not {"qzeros", "scales"} <= set(module.parts) or module.dtype("qweight") != torch.int32:
        return False
    shapes = [module.shape(part) for part in ("qweight", "qzeros", "scales")]
    return all(len(shape) == 2 for shape in shapes) and shapes[0][1] == shapes[2][1]


def packed_gptq(module: Module, settings: Settings, *, zeros: ZeroPoints, compute_dtype: str = "fp32") -> Packed:
    """How a layer's weight lies in its tensors, which are checked. Raises `CheckpointError`.

    The tensors themselves say how many bits a code has, whether zero points are those of a symmetric grid, and whether
    inputs are permuted: settings differ from layer to layer, and are told in many ways. Small tensors are read for it.
    """
    if not is_gptq(module):
        raise module.bad("qweight", "which with its qzeros and scales is not GPTQ's layout")
    rows, n = module.shape("qweight")
    groups, zero_words = module.shape("qzeros")
    bits = zero_words * 32 // n if n else 0
    if bits not in gptq.DTYPES or zero_words * 32 != n * bits or rows * 32 % bits:
        raise module.bad("qzeros", f"which with {n} outputs is no packing of {_listed()} bits")
    k = rows * 32 // bits
    module.expect("qzeros", (torch.int32,), (groups, zero_words))
    module.expect("scales", tuple(SCALE_DTYPES), (groups, n))
    where = f"{module.files.label}: {module.prefix[:200]}"
    size = group_size(settings, k, groups, where)
    ordered = False
    if "g_idx" in module.parts:
        module.expect("g_idx", (torch.int32, torch.int64), (k,))
        ordered = not gptq.is_plain(module.files.read(module.parts["g_idx"]), k if size == -1 else min(size, k))
    symmetric = settings.flag("sym") is True and _all_in_the_middle(module, bits, zeros)
    scheme = settings.scheme(
        dtype=gptq.DTYPES[bits],
        group_size=size,
        symmetric=symmetric,
        scale_dtype=SCALE_DTYPES[module.dtype("scales")],
        compute_dtype=compute_dtype,
    )
    weight = StoredWeight(scheme, (n, k), module.files.float_dtype, ordered=ordered)
    return Packed(weight, module.parts, partial(gptq.decode, scheme, zeros, ordered))


def _all_in_the_middle(module: Module, bits: int, zeros: ZeroPoints) -> bool:
    found = gptq.zero_points(module.files.read(module.parts["qzeros"]), bits, zeros)
    return bool((found == 1 << (bits - 1)).all())


def _listed() -> str:
    return ", ".join(str(bits) for bits in gptq.DTYPES)
