"""Exact references of the three ways to compute `x @ W.T + bias`. Clear, not fast: kernels are judged by them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from woqfx import ComputeDType, GroupParams, QTensor, split_groups


class FP32(ComputeDType):
    """Weights dequantized to float32, float32 multiply-add."""

    name = "fp32"

    def matmul(self, x: Tensor, weight: QTensor, bias: Tensor | None) -> Tensor:
        """See `woqfx.ComputeDType.matmul`."""
        return _row_stable(x.float(), weight.dequantize(), bias).to(x.dtype)


class BF16(ComputeDType):
    """Weights and activations rounded to bfloat16, float32 products (exact) and sums."""

    name = "bf16"

    def matmul(self, x: Tensor, weight: QTensor, bias: Tensor | None) -> Tensor:
        """See `woqfx.ComputeDType.matmul`."""
        rounded = weight.dequantize().bfloat16().float()
        return _row_stable(x.bfloat16().float(), rounded, bias).to(x.dtype)


class Int8(ComputeDType):
    """Activations quantized to int8 per token and group of the weight, dynamically; integer dot products.

    For each group: sx = amax(x) / 127, q = round(x / sx), half to even. The dot products of q with the
    weight's integers (`DType.integers`) are exact; each is scaled by sx times the weight's scale, and these
    are summed in float32, groups in order.
    """

    name = "int8"

    def matmul(self, x: Tensor, weight: QTensor, bias: Tensor | None) -> Tensor:
        """See `woqfx.ComputeDType.matmul`."""
        k = weight.in_features
        tokens = x.reshape(-1, k).float()
        if weight.order is not None:
            tokens = tokens[:, weight.order.long()]
        total = torch.zeros(len(tokens), weight.out_features)
        blocks = list(_integer_blocks(weight))
        # Rows are independent; so many at a time that their dot products stay in the cache.
        step = max(1, _DOTS // (weight.out_features * weight.scheme.group_count(k)))
        for rows in (slice(start, start + step) for start in range(0, len(tokens), step)):
            for columns, integers, scale in blocks:
                part = tokens[rows, columns]
                part = part.view(len(part), *integers.shape[1:])
                amax = part.abs().amax(dim=2)
                steps = torch.where(amax > 0, amax / 127, 1.0)
                quantized = (part / steps.unsqueeze(2)).round_()
                for term in _dots(quantized, integers).mul_((steps.unsqueeze(2) * scale.T).transpose(0, 1)):
                    total[rows] += term
        if bias is not None:
            total += bias.float()
        return total.to(x.dtype).view(*x.shape[:-1], weight.out_features)


_DOTS = 1 << 22


def _integer_blocks(weight: QTensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Full groups, then the shorter last one: columns, integers [N, n, width], scales [N, n]."""
    params = weight.params()
    for which, columns, codes in split_groups(weight.unpacked(), weight.scheme.group_width(weight.in_features)):
        zero = None if params.zero is None else params.zero[:, which]
        integers, scale = weight.dtype.integers(codes, GroupParams(params.scale[:, which], zero))
        yield columns, integers, scale


def _dots(quantized: Tensor, integers: Tensor) -> Tensor:
    """Dot products [n, M, N] of [M, n, width] and [N, n, width], exact: in float64 where float32 could round."""
    exact = torch.float32 if 127 * 255 * integers.shape[2] < 1 << 24 else torch.float64
    left, right = quantized.to(exact).transpose(0, 1), integers.to(exact).permute(1, 2, 0)
    return torch.bmm(left, right).float()


def _row_stable(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ W.T + bias` in float32, in which a row's result does not depend on how many rows there are.

    BLAS libraries take other paths, with other orders of summation, for few and for odd numbers of
    rows, and for narrow results; at multiples of 8 rows, and 16 columns or more, they take one.
    """
    tokens, n = x.reshape(-1, x.shape[-1]), len(weight)
    padded = pad(tokens, (0, 0, 0, -len(tokens) % 8))
    wide = weight if n >= 16 else pad(weight, (0, 0, 0, 16 - n))
    result = linear(padded, wide)[: len(tokens), :n]
    if bias is not None:
        result = result + bias.float()
    return result.reshape(*x.shape[:-1], n)
