"""Rounding a weight to the nearest point of its grid: the default last step of every algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from woqfx.dtype import DType, GroupParams
from woqfx.errors import WeightError
from woqfx.groups import split_groups
from woqfx.packing import pack, packed_width
from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme

#: Weights worked on at a time: a few copies of this many float32 stay in the cache.
_CHUNK = 1 << 19

Fit = Callable[[Tensor], GroupParams]


def quantize_nearest(weight: Tensor, dtype: DType, scheme: Scheme, *, name: str, fit: Fit | None = None) -> QTensor:
    """Quantize `weight` [..., N, K] of any float type, rows in chunks.

    `fit` gives the parameters of float32 groups [rows, n, g]; by default the dtype's own `fit`. Codes are
    chosen for the scales as they will be stored, but before double quantization (as QLoRA does).
    `name` is the weight's, for messages. Raises `WeightError` for NaN, infinity, and scales that
    `scale_dtype` cannot hold.
    """
    fit = fit or (lambda block: dtype.fit(block, symmetric=scheme.symmetric))
    *_, k = shape = tuple(weight.shape)
    rows = weight.reshape(-1, k)
    width, count = scheme.group_width(k), scheme.group_count(k)
    packed = torch.empty(len(rows), packed_width(k, dtype.bits), dtype=torch.uint8)
    scale = torch.empty(len(rows), count, dtype=torch.float32)
    zero = None if scheme.symmetric else torch.empty_like(scale)
    for part in _chunks(len(rows), max(1, _CHUNK // k)):
        block_codes = []
        for which, _, block in split_groups(rows[part].to(torch.float32), width):
            params = fit(block).stored_as(scheme.scale_dtype)
            block_codes.append(dtype.encode(block, params).flatten(-2))
            scale[part, which] = params.scale
            if zero is not None and params.zero is not None:
                zero[part, which] = params.zero
        packed[part] = pack(torch.cat(block_codes, dim=-1) if len(block_codes) > 1 else block_codes[0], dtype.bits)
    if not bool(torch.isfinite(scale).all()):
        raise _unfit(rows, scale, scheme, name)
    *lead, _ = shape
    params = GroupParams(scale.view(*lead, count), None if zero is None else zero.view(*lead, count))
    return QTensor.of_packed(dtype, scheme, shape, packed.view(*lead, -1), params)


def _chunks(count: int, step: int) -> Iterable[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _unfit(rows: Tensor, scale: Tensor, scheme: Scheme, name: str) -> WeightError:
    # A bad weight makes its group's scale bad, so the scales tell where to look.
    row, group = (int(i) for i in torch.nonzero(~torch.isfinite(scale))[0])
    width = scheme.group_width(rows.shape[1])
    block = rows[row, group * width : (group + 1) * width]
    bad = torch.nonzero(~torch.isfinite(block))
    if len(bad):
        column = group * width + int(bad[0])
        return WeightError(
            f"{name}: weight [{row}, {column}] is {float(rows[row, column])}; "
            f"the model is damaged, or overflowed when it was converted: fix it, or keep this layer by a rule"
        )
    return WeightError(
        f"{name}: row {row}, group {group} reaches {float(block.abs().max()):.4g}, a scale that {scheme.scale_dtype} "
        f"cannot hold: use scale_dtype bf16 or fp32"
    )
