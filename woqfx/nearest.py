"""Rounding a weight to the nearest point of its grid: the default last step of every algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from woqfx.dtype import DType, GroupParams
from woqfx.errors import PluginError, WeightError
from woqfx.groups import split_groups
from woqfx.packing import pack, packed_width
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme
from woqfx.sums import sum_by_halves

#: Weights worked on at a time: a few copies of this many float32 stay in the cache.
_CHUNK = 1 << 19

Fit = Callable[[Tensor], GroupParams]


def quantize_nearest(
    weight: Tensor,
    dtype: DType,
    scheme: Scheme,
    *,
    name: str,
    fit: Fit | None = None,
    ratios: Sequence[float] = (1.0,),
    importance: Tensor | None = None,
) -> QTensor:
    """Quantize `weight` [..., N, K] of any float type.

    The dtype's own `fit` gives the parameters. Of several `ratios`, shares of its range to which a group may be
    clipped, each group takes the one of the least error sum_k importance[k] (w_k - w'_k)^2, the first in a tie;
    `importance` is float32 [K], by default all 1. A function `fit` takes the place of all that: it gives the parameters
    of float32 groups [rows, n, g]: a scale for each, and a zero point where the scheme is asymmetric.

    Codes are chosen for the scales as they will be stored, but before double quantization (as QLoRA does).
    `name` is the weight's, for messages. Raises `WeightError` for NaN, infinity, and scales that
    `scale_dtype` cannot hold, and `PluginError` for parameters of another form.
    """
    *lead, k = shape = tuple(weight.shape)
    rows = weight.reshape(-1, k)
    made = None
    if fit is None:
        made = registry().accelerated(lambda by: by.nearest(rows, dtype, scheme, ratios, importance))
        fit = _fit_by_ratios(dtype, scheme, k, ratios, importance)
    else:
        fit = _checked(fit, scheme, name)
    packed, params = made or round_rows(rows, dtype, scheme, fit)
    if not bool(torch.isfinite(params.scale).all()):
        raise _unfit(rows, params.scale, scheme, name)
    scale, zero = (None if part is None else part.view(*lead, -1) for part in (params.scale, params.zero))
    assert scale is not None
    return QTensor.of_packed(dtype, scheme, shape, packed.view(*lead, -1), GroupParams(scale, zero))


def round_rows(rows: Tensor, dtype: DType, scheme: Scheme, fit: Fit) -> tuple[Tensor, GroupParams]:
    """Codes in bytes, uint8 [N, packed_width(K, bits)], and float32 parameters [N, G] as stored, of a weight [N, K]."""
    k = rows.shape[1]
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
    return packed, GroupParams(scale, zero)


def _checked(fit: Fit, scheme: Scheme, name: str) -> Fit:
    """`fit`, and `PluginError` for what else than the scheme's parameters it gives."""
    wanted = {"scale"} if scheme.symmetric else {"scale", "zero"}

    def checked(groups: Tensor) -> GroupParams:
        params = fit(groups)
        found = {key: tuple(part.shape) for key, part in vars(params).items() if part is not None}
        if found != dict.fromkeys(wanted, tuple(groups.shape[:-1])):
            kind = "symmetric" if scheme.symmetric else "asymmetric"
            given = ", ".join(f"{key} {list(shape)}" for key, shape in found.items())
            raise PluginError(
                f"{name}: fit gave {given} for groups {list(groups.shape)}, where a group of {kind} schemes has "
                f"{' and '.join(sorted(wanted))}, each {list(groups.shape[:-1])}"
            )
        return params

    return checked


def _fit_by_ratios(dtype: DType, scheme: Scheme, k: int, ratios: Sequence[float], importance: Tensor | None) -> Fit:
    """The dtype's fit, or a search among several ratios."""
    if len(ratios) == 1:
        return lambda groups: dtype.fit(groups, symmetric=scheme.symmetric, shrink=ratios[0])
    # Full groups and the shorter last one are asked for in blocks of their own, which their widths tell apart.
    weigh = {} if importance is None else {b.shape[-1]: b for *_, b in split_groups(importance, scheme.group_width(k))}

    def fit(groups: Tensor) -> GroupParams:
        best: GroupParams | None = None
        least = torch.empty(0)
        for ratio in ratios:
            params = dtype.fit(groups, symmetric=scheme.symmetric, shrink=ratio)
            stored = params.stored_as(scheme.scale_dtype)
            squares = (dtype.decode(dtype.encode(groups, stored), stored) - groups).square_()
            if weigh:
                squares *= weigh[groups.shape[-1]]
            loss = sum_by_halves(squares)
            if best is None:
                best, least = params, loss
                continue
            better = loss < least
            least = torch.where(better, loss, least)
            zero = None
            if best.zero is not None and params.zero is not None:
                zero = torch.where(better, params.zero, best.zero)
            best = GroupParams(torch.where(better, params.scale, best.scale), zero)
        assert best is not None
        return best

    return fit


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
