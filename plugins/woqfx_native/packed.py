"""Weights in the kernels' own layout, as torch tensors of bytes.

A weight [N, K] becomes one uint8 tensor [size] that says itself what it holds; a stack [E, N, K] becomes [E, size].
The layout is the same on every CPU and for every compute dtype. It lives in memory, never in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from woqfx import DType, QTensor, Scheme
from woqfx.errors import WoqfxError
from woqfx_native import _core
from woqfx_native.ops import threads


def pack(q: QTensor) -> Tensor:
    """The bytes of a weight that the kernels can hold (`support.obstacle`)."""
    if len(q.shape) == 2:
        return pack_joined([q])
    first = pack_joined([q[0]])
    stack = first.new_empty((q.shape[0], len(first)))
    stack[0] = first
    for index in range(1, len(stack)):
        one = pack_joined([q[index]])
        if len(one) != len(first):  # float32 scales of one fit into 16 bits, and those of another do not
            raise WoqfxError(
                f"experts 0 and {index} of a stack take {len(first)} and {len(one)} bytes packed: their scales need "
                "different types, and a stack has one; store scales in 16 bits (scale_dtype='fp16', no double_quant)"
            )
        stack[index] = one
    return stack


def pack_joined(weights: Sequence[QTensor]) -> Tensor:
    """The bytes of weights [N, K] of one dtype, scheme and order of inputs as one: their rows, one after the other."""
    first = weights[0]
    k, levels, order = first.in_features, first.dtype.levels, first.order
    made = _core.pack(
        [_rows(q) for q in weights],
        k,
        first.scheme.group_width(k),
        first.dtype.bits,
        None if levels is None else levels.contiguous(),
        None if order is None else order.contiguous(),
        threads(),
    )
    packed: Tensor = from_dlpack(made.bytes())
    return packed


def _rows(q: QTensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    scales, offsets = q.scales, q.offsets
    if not isinstance(scales, Tensor):
        scales, offsets = scales.expand(), None if offsets is None else offsets.float()  # both of one type
    zeros, offsets = (None if part is None else part.contiguous() for part in (q.zeros, offsets))
    return q.codes.contiguous(), scales.contiguous(), zeros, offsets


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
