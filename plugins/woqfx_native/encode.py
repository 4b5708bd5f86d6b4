"""Quantizing with the native kernels: the bits of `woqfx.nearest` and `woqfx.quality`, many times as fast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from woqfx import Accelerator, Codebook, DType, GroupParams, IntegerGrid, QTensor, Scheme
from woqfx_native import _core
from woqfx_native.ops import threads

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_STORAGE = {"fp32": _core.Float.f32, "fp16": _core.Float.f16, "bf16": _core.Float.bf16}
_MOST_LEVELS = 16


class NativeQuantizing(Accelerator):
    """Any integer grid, and any codebook of up to 16 levels, that computes as its family does.

    `isa` is the instruction set to use, by default the best.
    """

    name = "native"

    def __init__(self, isa: _core.Isa | None = None) -> None:
        self.isa = isa

    def nearest(
        self, rows: Tensor, dtype: DType, scheme: Scheme, ratios: Sequence[float], importance: Tensor | None
    ) -> tuple[Tensor, GroupParams] | None:
        """See `Accelerator.nearest`."""
        if not (_is_plain(rows) and _is_plain_grid(dtype)):
            return None
        n, k = rows.shape
        codes = torch.empty(n, -(-k * dtype.bits // 8), dtype=torch.uint8)
        scale = torch.empty(n, scheme.group_count(k))
        zero = None if scheme.symmetric else torch.empty_like(scale)
        _core.nearest(
            rows.detach().contiguous(),
            scheme.group_width(k),
            dtype.bits,
            isinstance(dtype, IntegerGrid) and dtype.full_range,
            dtype.levels,
            _STORAGE[scheme.scale_dtype],
            list(ratios),
            None if importance is None else importance.contiguous(),
            codes,
            scale,
            zero,
            threads(),
            self.isa,
        )
        return codes, GroupParams(scale, zero)

    def square_error(self, rows: Tensor, q: QTensor) -> tuple[Tensor, Tensor] | None:
        """See `Accelerator.square_error`."""
        if not (_is_plain(rows) and _is_plain_grid(q.dtype)) or not (q.order is None and q.offsets is None):
            return None
        off, size = torch.empty(len(rows)), torch.empty(len(rows))
        _core.square_error(
            rows.detach().contiguous(),
            q.scheme.group_width(q.in_features),
            q.dtype.bits,
            q.dtype.levels,
            q.codes.contiguous(),
            q.params().scale.contiguous(),
            None if q.zeros is None else q.zeros.contiguous(),
            off,
            size,
            threads(),
            self.isa,
        )
        return off, size


def _is_plain(rows: Tensor) -> bool:
    return rows.dtype in _TYPES and rows.device.type == "cpu" and rows.numel() > 0


def _is_plain_grid(dtype: DType) -> bool:
    """Whether a grid is what its family makes of its data: then the data are all that kernels need."""
    family = Codebook if isinstance(dtype, Codebook) else IntegerGrid
    if any(getattr(getattr(dtype, step), "__func__", None) is not getattr(family, step) for step in ("fit", "encode")):
        return False
    if isinstance(dtype, IntegerGrid):
        return dtype.middle == 1 << (dtype.bits - 1) and dtype.top == (1 << dtype.bits) - 1
    return dtype.levels is not None and len(dtype.levels) <= _MOST_LEVELS
