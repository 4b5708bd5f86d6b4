"""A packed weight that the compute dtype's reference multiplies by, and the operator behind it.

The operator is registered with `torch.library`, with a fake implementation and a gradient, so that
`torch.compile`, meta tensors and adapters on top of a quantized model work.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
from torch import Tensor

import woqfx
from woqfx import DType, PackedWeight, QTensor, Scheme


class ReferenceWeight(PackedWeight):
    """A `QTensor` whose parts are buffers: `codes`, `scales`, and what else its scheme has."""

    def __init__(self, q: QTensor, float_dtype: torch.dtype, kernel: str) -> None:
        super().__init__(q, float_dtype, kernel)
        parts = q.tensors()
        for suffix, part in parts.items():
            self.register_buffer(suffix, part)
        self._suffixes = tuple(parts)
        self._layout = json.dumps([q.scheme.to_json(), q.shape, self._suffixes])

    def _parts(self) -> list[Tensor]:
        return [self.get_buffer(suffix) for suffix in self._suffixes]

    def qtensor(self) -> QTensor:
        """See `woqfx.PackedWeight.qtensor`."""
        return _assemble(self._parts(), self._layout)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `woqfx.PackedWeight.linear`."""
        result: Tensor = torch.ops.woqfx_torch_cpu.linear(x, self._parts(), bias, self._layout, self.shape[-2])
        return result

    def expert(self, index: int) -> PackedWeight:
        """See `woqfx.PackedWeight.expert`."""
        return ReferenceWeight(self.qtensor()[index], self.dtype, self.kernel)

    def rows(self, index: Tensor) -> Tensor:
        """See `woqfx.PackedWeight.rows`."""
        result: Tensor = torch.ops.woqfx_torch_cpu.rows(index, self._parts(), self._layout, self.shape[-1])
        return result.to(self.dtype)


@cache
def _read(layout: str) -> tuple[DType, Scheme, tuple[int, ...], tuple[str, ...]]:
    scheme_json, shape, suffixes = json.loads(layout)
    scheme = Scheme.from_json(scheme_json)
    return woqfx.registry().dtype(scheme.dtype), scheme, tuple(shape), tuple(suffixes)


def _assemble(parts: list[Tensor], layout: str) -> QTensor:
    dtype, scheme, shape, suffixes = _read(layout)
    return QTensor.of_parts(dtype, scheme, shape, dict(zip(suffixes, parts, strict=True)))


@torch.library.custom_op("woqfx_torch_cpu::linear", mutates_args=())
def _linear(x: Tensor, parts: list[Tensor], bias: Tensor | None, layout: str, out_features: int) -> Tensor:
    q = _assemble(parts, layout)
    result = woqfx.registry().compute_dtype(q.scheme.compute_dtype).matmul(x, q, bias)
    # The caller may write into what a linear layer gives; autograd forbids that for a view that an operator returns.
    return result.clone() if result._is_view() else result


@_linear.register_fake
def _(x: Tensor, parts: list[Tensor], bias: Tensor | None, layout: str, out_features: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.parts, ctx.bias, ctx.layout, _ = inputs


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, list[None], Tensor | None, None, None]:
    """The gradient of the float layer with the dequantized weight: rounding of activations is passed through."""
    weight = _assemble(ctx.parts, ctx.layout).dequantize()
    grad_x = (grad.float() @ weight).to(grad.dtype)
    grad_bias = grad.flatten(0, -2).sum(0).to(ctx.bias.dtype) if ctx.bias is not None else None
    return grad_x, [None] * len(ctx.parts), grad_bias, None, None


torch.library.register_autograd("woqfx_torch_cpu::linear", _backward, setup_context=_save)


@torch.library.custom_op("woqfx_torch_cpu::rows", mutates_args=())
def _rows(index: Tensor, parts: list[Tensor], layout: str, in_features: int) -> Tensor:
    q = _assemble(parts, layout)
    return q.rows(index.flatten()).dequantize().view(*index.shape, in_features)


@_rows.register_fake
def _(index: Tensor, parts: list[Tensor], layout: str, in_features: int) -> Tensor:
    return index.new_empty((*index.shape, in_features), dtype=torch.float32)
