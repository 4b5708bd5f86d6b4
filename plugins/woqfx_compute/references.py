"""Exact references of the three ways to compute `x @ W.T + bias`. Clear, not fast: kernels are judged by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from woqfx import ComputeDType, DType, GroupParams, QTensor, split_groups


class FP32(ComputeDType):
    """Weights dequantized to float32, float32 multiply-add."""

    name = "fp32"

    def matmul(self, x: Tensor, weight: QTensor, bias: Tensor | None) -> Tensor:
        """See `woqfx.ComputeDType.matmul`."""
        return _finish(_row_stable(_tokens(x), weight.dequantize()), x, bias)


class BF16(ComputeDType):
    """The grid's levels and the activations rounded to bfloat16; dot products of groups scaled in float32.

    Levels are rounded without their scale: those of integer grids, whole numbers up to 255, are exact. The dot
    product of a group is summed exactly (float64) and rounded to float32; each is scaled by the weight's scale,
    and these are summed in float32, groups in order. An offset multiplies the sum of the group's rounded activations.
    """

    name = "bf16"

    def matmul(self, x: Tensor, weight: QTensor, bias: Tensor | None) -> Tensor:
        """See `woqfx.ComputeDType.matmul`."""
        return _finish(_sum_groups(_tokens(x), weight, _bf16_levels, _to_bf16), x, bias)


class Int8(ComputeDType):
    """Activations quantized to int8 per token and group of the weight, dynamically; integer dot products.

    For each group: sx = amax(x) / 127, q = round(x / sx), half to even. The dot products of q with the
    weight's integers (`DType.integers`) are exact; each is scaled by sx times the weight's scale, and these
    are summed in float32, groups in order. An offset multiplies sx times the sum of the group's q: what was rounded,
    so that rounding errors of x are multiplied by weights, not by codes, which are all of one sign.

    With an outlier threshold t, activations |x| >= t count as 0 in this, and the float32 product of them alone
    with the dequantized weight is added: LLM.int8() (arXiv 2208.07339), element by element, so that a row
    does not depend on the outliers of the rows beside it.
    """

    name = "int8"
    has_outliers = True

    def matmul(self, x: Tensor, weight: QTensor, bias: Tensor | None) -> Tensor:
        """See `woqfx.ComputeDType.matmul`."""
        tokens, threshold = _tokens(x), weight.scheme.outlier_threshold
        if not threshold:
            return _finish(_sum_groups(tokens, weight, _int8_levels, _to_int8), x, bias)
        outliers = tokens.abs() >= threshold
        total = _sum_groups(tokens.masked_fill(outliers, 0), weight, _int8_levels, _to_int8)
        total += _row_stable(tokens.masked_fill(~outliers, 0), weight.dequantize())
        return _finish(total, x, bias)


#: Codes [N, n, width] of `n` groups as numbers to multiply by, in a type that sums their products exactly, and the
#: scales [N, n] that go with them.
Levels = Callable[[DType, Tensor, GroupParams], tuple[Tensor, Tensor]]

#: Activations [M, n, width] as numbers to multiply, and what one of them stands for, [M, n].
Rounding = Callable[[Tensor], tuple[Tensor, Tensor]]


def _bf16_levels(dtype: DType, codes: Tensor, params: GroupParams) -> tuple[Tensor, Tensor]:
    if dtype.levels is None:
        steps, scale = dtype.integers(codes, params)
        return steps.double(), scale
    levels = dtype.levels.bfloat16().double()
    return levels.index_select(0, codes.flatten().int()).view(codes.shape), params.scale


def _int8_levels(dtype: DType, codes: Tensor, params: GroupParams) -> tuple[Tensor, Tensor]:
    integers, scale = dtype.integers(codes, params)
    fits = 127 * 255 * codes.shape[-1] < 1 << 24
    return integers if fits else integers.double(), scale


def _to_bf16(part: Tensor) -> tuple[Tensor, Tensor]:
    return part.bfloat16().float(), torch.ones(part.shape[:2])


def _to_int8(part: Tensor) -> tuple[Tensor, Tensor]:
    amax = part.abs().amax(dim=2)
    steps = torch.where(amax > 0, amax / 127, 1.0)
    return (part / steps.unsqueeze(2)).round_(), steps


_DOTS = 1 << 22


def _sum_groups(tokens: Tensor, weight: QTensor, levels: Levels, rounding: Rounding) -> Tensor:
    """Dot products of groups, each scaled, summed in float32 in the order of groups: [M, K] to [M, N]."""
    k = weight.in_features
    if weight.order is not None:
        tokens = tokens[:, weight.order.long()]
    total = torch.zeros(len(tokens), weight.out_features)
    blocks = list(_blocks(weight, levels))
    # Rows are independent; so many at a time that their dot products stay in the cache.
    step = max(1, _DOTS // (weight.out_features * weight.scheme.group_count(k)))
    for rows in (slice(start, start + step) for start in range(0, len(tokens), step)):
        for columns, numbers, scale, offset in blocks:
            part = tokens[rows, columns]
            rounded, steps = rounding(part.view(len(part), *numbers.shape[1:]))
            terms = _dots(rounded, numbers).mul_((steps.unsqueeze(2) * scale.T).transpose(0, 1))
            if offset is not None:
                sums = rounded.double().sum(dim=2).float() * steps
                terms += (sums.unsqueeze(2) * offset.T).transpose(0, 1)
            for term in terms:
                total[rows] += term
    return total


def _blocks(weight: QTensor, levels: Levels) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
    """Full groups, then the shorter last one: columns, numbers [N, n, width], scales [N, n], offsets [N, n]."""
    params = weight.params()
    for which, columns, codes in split_groups(weight.unpacked(), weight.scheme.group_width(weight.in_features)):
        own = params.of_groups(which)
        numbers, scale = levels(weight.dtype, codes, own)
        yield columns, numbers, scale, own.offset


def _dots(left: Tensor, right: Tensor) -> Tensor:
    """Dot products [n, M, N] of [M, n, width] and [N, n, width], summed in the latter's type, rounded once."""
    return torch.bmm(left.to(right.dtype).transpose(0, 1), right.permute(1, 2, 0)).float()


def _tokens(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).float()


def _finish(total: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """Sums [M, N] as a linear layer's result for x [..., K]: with the bias, in x's type."""
    if bias is not None:
        total = total + bias.float()
    return total.to(x.dtype).view(*x.shape[:-1], total.shape[1])


def _row_stable(tokens: Tensor, weight: Tensor) -> Tensor:
    """`tokens @ W.T` in float32, in which a row's result does not depend on how many rows there are.

    BLAS libraries take other paths, with other orders of summation, for few and for odd numbers of
    rows, and for narrow results; at multiples of 8 rows, and 16 columns or more, they take one.
    """
    n = len(weight)
    padded = pad(tokens, (0, 0, 0, -len(tokens) % 8))
    wide = weight if n >= 16 else pad(weight, (0, 0, 0, 16 - n))
    return linear(padded, wide)[: len(tokens), :n]
