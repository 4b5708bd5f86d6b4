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
from woqfx_native import _core
from woqfx_native.ops import threads

#: Scales, and offsets if there are any, both of one type.
_Floats = tuple[Tensor, Tensor | None]


def pack(q: QTensor) -> Tensor:
    """The bytes of a weight that the kernels can hold (`support.obstacle`). Matrices of a stack take as many each."""
    if len(q.shape) == 2:
        return pack_joined([q])
    matrices = q.matrices()
    floats = [_floats(matrix) for matrix in matrices]
    held = _held_in(floats)  # of all: the scales of one may fit into 16 bits, and those of another not
    first = _packed(matrices[:1], floats[:1], held)
    stack = first.new_empty((len(matrices), len(first)))
    stack[0] = first
    for index in range(1, len(matrices)):
        stack[index] = _packed([matrices[index]], [floats[index]], held)
    return stack


def pack_joined(weights: Sequence[QTensor]) -> Tensor:
    """The bytes of weights [N, K] of one dtype, scheme and order of inputs as one: their rows, one after the other."""
    floats = [_floats(q) for q in weights]
    return _packed(weights, floats, _held_in(floats))


def _packed(weights: Sequence[QTensor], floats: Sequence[_Floats], held: torch.dtype) -> Tensor:
    first = weights[0]
    k, levels, order = first.in_features, first.dtype.levels, first.order
    made = _core.pack(
        [_rows(q, own, held) for q, own in zip(weights, floats, strict=True)],
        k,
        first.scheme.group_width(k),
        first.dtype.bits,
        None if levels is None else levels.contiguous(),
        None if order is None else order.contiguous(),
        threads(),
    )
    packed: Tensor = from_dlpack(made.bytes())
    return packed


def _rows(q: QTensor, floats: _Floats, held: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    scales, offsets = (None if part is None else part.to(held).contiguous() for part in floats)
    assert scales is not None
    return q.codes.contiguous(), scales, None if q.zeros is None else q.zeros.contiguous(), offsets


def _floats(q: QTensor) -> _Floats:
    scales, offsets = q.scales, q.offsets
    if isinstance(scales, Tensor):
        return scales, offsets
    return scales.expand(), None if offsets is None else offsets.float()


def _held_in(floats: Sequence[_Floats]) -> torch.dtype:
    """The smallest type that holds all these numbers exactly."""
    parts = [part for both in floats for part in both if part is not None]
    if parts[0].dtype != torch.float32:
        return parts[0].dtype
    for kind in (torch.float16, torch.bfloat16):
        if all(torch.equal(part, part.to(kind).float()) for part in parts):
            return kind
    return torch.float32


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
