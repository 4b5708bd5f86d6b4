"""Weights in the kernels' own layout, as torch tensors of bytes.

A weight [N, K] becomes one uint8 tensor [size] that says itself what it holds; a stack [E, N, K] becomes [E, size].
The layout is the same on every CPU and for every compute dtype. It lives in memory, never in a checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from woqfx import DType, QTensor, Scheme
from woqfx_native import _core
from woqfx_native.ops import threads


def pack(q: QTensor) -> Tensor:
    """The bytes of a weight that the kernels can hold (`support.obstacle`)."""
    if len(q.shape) == 2:
        return _pack(q)
    first = _pack(q[0])
    stack = first.new_empty((q.shape[0], len(first)))
    stack[0] = first
    for index in range(1, len(stack)):
        stack[index] = _pack(q[index])
    return stack


def _pack(q: QTensor) -> Tensor:
    scales, offsets = q.scales, q.offsets
    if not isinstance(scales, Tensor):
        scales, offsets = scales.expand(), None if offsets is None else offsets.float()  # both of one type
    k, width = q.in_features, q.scheme.group_width(q.in_features)
    zeros, offsets, levels, order = (
        None if part is None else part.contiguous() for part in (q.zeros, offsets, q.dtype.levels, q.order)
    )
    made = _core.pack(
        q.codes.contiguous(), scales.contiguous(), k, width, q.dtype.bits, zeros, offsets, levels, order, threads()
    )
    packed: Tensor = from_dlpack(made.bytes())
    return packed


def unpack(
    packed: Tensor, dtype: DType, scheme: Scheme, shape: tuple[int, ...], *, ordered: bool, offsets: bool
) -> dict[str, Tensor]:
    """The parts of `QTensor.tensors` again, equal in every bit to those that were packed.

    Of double-quantized weights, whose packed scales are expanded, the parts of the scales are left out.
    """
    specs = QTensor.specs(dtype, scheme, shape, ordered=ordered, offsets=offsets)
    parts = {suffix: torch.empty(size, dtype=kind) for suffix, (kind, size) in specs.items() if suffix in _HELD}
    floats = {key: torch.empty_like(parts[key], dtype=torch.float32) for key in ("scales", "offsets") if key in parts}
    orders = parts["order"].view(-1, shape[-1]) if ordered else None
    for index in range(packed.numel() // packed.shape[-1]):
        one = _core.PackedWeight(packed.view(-1, packed.shape[-1])[index])
        codes, scale, zeros, offset = (
            None if part is None else part.view(-1, *part.shape[-2:])[index]
            for part in (parts["codes"], floats.get("scales"), parts.get("zeros"), floats.get("offsets"))
        )
        _core.unpack(one, codes, scale, zeros, offset, None if orders is None else orders[index], threads())
    for key, values in floats.items():
        parts[key].copy_(values)
    return parts


_HELD = ("codes", "scales", "zeros", "offsets", "order")
