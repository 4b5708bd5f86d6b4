"""Exact references of the three ways to compute `x @ W.T + bias`. Clear, not fast: kernels are judged by them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from woqfx import ComputeDType, QTensor


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

    For each group: scale sx = amax(x) / 127, q = round(x / sx), half to even. The dot products of q with the
    weight's integers (`DType.integers`) are exact; sums over groups, scaled by sx and by the
    weight's scale, are float32, groups in order.
    """

    name = "int8"

    def matmul(self, x: Tensor, weight: QTensor, bias: Tensor | None) -> Tensor:
        """See `woqfx.ComputeDType.matmul`."""
        k = weight.in_features
        tokens = x.reshape(-1, k).float()
        if weight.order is not None:
            tokens = tokens[:, weight.order.long()]
        params, codes = weight.params(), weight.unpacked()
        width = weight.scheme.group_width(k)
        total = torch.zeros(len(tokens), weight.out_features)
        for group in range(weight.scheme.group_count(k)):
            columns = slice(group * width, min((group + 1) * width, k))
            zero = None if params.zero is None else params.zero[:, group]
            integers, scale = weight.dtype.integers(codes[:, columns], type(params)(params.scale[:, group], zero))
            part = tokens[:, columns]
            amax = part.abs().amax(dim=1, keepdim=True)
            steps = torch.where(amax > 0, amax / 127, 1.0)
            # Products reach 127 * 255 * width: float64 holds their sums exactly at any width.
            dots = (part / steps).round().double() @ integers.double().T
            total += dots.float() * (steps * scale)
        if bias is not None:
            total += bias.float()
        return total.to(x.dtype).view(*x.shape[:-1], weight.out_features)


def _row_stable(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ W.T + bias` in float32, in which a row's result does not depend on how many rows there are.

    BLAS libraries take other paths, with other orders of summation, for few and for odd numbers of
    rows; at multiples of 16 rows they take one.
    """
    tokens = x.reshape(-1, x.shape[-1])
    padded = pad(tokens, (0, 0, 0, -len(tokens) % 16))
    result = linear(padded, weight, None if bias is None else bias.float())
    return result[: len(tokens)].view(*x.shape[:-1], weight.shape[0])
