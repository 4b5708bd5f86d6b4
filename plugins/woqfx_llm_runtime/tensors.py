"""The tensors of a checkpoint, as the engine takes them."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from woqfx import QTensor, Scheme, StoredModel
from woqfx.errors import CheckpointError
from woqfx_llm_runtime import _core
from woqfx_llm_runtime.description import Linear
from woqfx_llm_runtime.packing import HeadInEightBits, packed_side_by_side
from woqfx_native.cache import PackCache
from woqfx_native.packed import pack

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Matrix:
    """What is known of a linear layer's matrix [n, k] before it is read; without a scheme it is of floats."""

    linear: Linear
    n: int
    k: int
    scheme: Scheme | None
    kind: Hashable
    """The same for matrices that one kernel multiplies by at once, if they also take inputs in one order."""


class Tensors:
    """Reads tensors by name, and remembers which were asked for. With a cache, what is quantized comes from there.

    Several threads may use one.
    """

    def __init__(self, stored: StoredModel, cache: PackCache | None = None) -> None:
        self.stored, self._cache = stored, cache
        self._weights, self._kept = stored.weights, stored.kept
        self._used: set[str] = set()
        self._last = threading.local()

    def stored_name(self, name: str) -> str:
        """The name that a tensor is stored under. Raises `CheckpointError` if there is none."""
        name = self.stored.aliases.get(name, name)
        if name not in self._weights and name not in self._kept:
            raise CheckpointError(f"{self.stored.label} lacks {name}, which its architecture needs")
        self._used.add(name)
        return name

    def unused(self) -> list[str]:
        """The checkpoint's tensors that nobody asked for."""
        return [name for name in (*self._weights, *self._kept) if name not in self._used]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the checkpoint's headers."""
        name = self.stored_name(name)
        return tuple((self._weights.get(name) or self._kept[name]).shape)

    def read(self, name: str) -> QTensor | Tensor:
        """A quantized weight, or a kept tensor of a type that the engine takes."""
        name = self.stored_name(name)
        if getattr(self._last, "name", None) != name:  # parts of a fused weight are asked for one after the other
            self._last.tensor, self._last.name = self._read(name), name
        tensor: QTensor | Tensor = self._last.tensor
        return tensor

    def _read(self, name: str) -> QTensor | Tensor:
        if name in self._weights:
            return self.stored.read_weight(name)
        tensor = self.stored.read_kept(name)
        return (tensor if tensor.dtype in _FLOATS else tensor.float()).detach().contiguous()

    def vector(self, name: str, size: int | None = None) -> list[float]:
        """A kept vector as float32 numbers."""
        tensor = self.read(name)
        if not isinstance(tensor, Tensor) or tensor.dim() != 1 or (size is not None and len(tensor) != size):
            raise self._misshapen(name, "a kept vector" + (f" of {size}" if size is not None else ""))
        numbers: list[float] = tensor.float().tolist()
        return numbers

    def matrix(self, linear: Linear) -> QTensor | Tensor:
        """The rows [N, K] of a linear layer."""
        whole = self.read(linear.weight)
        if isinstance(whole, Tensor) and linear.transposed:
            whole = whole.T
        return whole if not linear.rows else _rows(whole, self._index(linear, whole.shape[0]))

    def _misshapen(self, name: str, needed: str) -> CheckpointError:
        return CheckpointError(
            f"{self.stored.label}: {name} has shape {list(self.shape(name))}, where its architecture has {needed}"
        )

    def _index(self, linear: Linear, size: int) -> Tensor:
        index = [row for part in linear.rows for row in part]
        if not index or min(index) < 0 or max(index) >= size:
            raise CheckpointError(
                f"{self.stored.label}: {linear.weight} has {size} rows, where its architecture takes "
                f"{linear.rows[0].start} to {linear.rows[-1].stop}"
            )
        return torch.tensor(index)

    def bias(self, linear: Linear, size: int) -> list[float] | None:
        """The rows of a linear layer's bias, `size` numbers; None if it has none."""
        if linear.bias is None:
            return None
        if not linear.rows:
            return self.vector(linear.bias, size)
        whole = torch.tensor(self.vector(linear.bias))
        rows: list[float] = whole[self._index(replace(linear, weight=linear.bias), len(whole))].tolist()
        return rows

    def projection(self, linears: Sequence[Linear], head: HeadInEightBits | None = None) -> _core.Projection:
        """Linear layers of one input, their outputs side by side: as few weights as their schemes allow."""
        planned = [self._planned(linear, head) for linear in linears]
        biases = [self.bias(one.linear, one.n) for one in planned]
        joined: list[float] = []
        if any(bias is not None for bias in biases):
            for bias, one in zip(biases, planned, strict=True):
                joined += bias if bias is not None else [0.0] * one.n
        groups = [list(group) for _, group in groupby(planned, lambda one: one.kind)]
        return _core.Projection([weight for group in groups for weight in self._multiplied(group, head)], joined)

    def _planned(self, linear: Linear, head: HeadInEightBits | None) -> _Matrix:
        name = self.stored_name(linear.weight)
        weight, shape = self._weights.get(name), self.shape(name)
        if len(shape) != 2:
            raise self._misshapen(linear.weight, "a matrix")
        n, k = shape if weight is not None or not linear.transposed else shape[::-1]
        if linear.rows:
            n = sum(map(len, linear.rows))
        if weight is not None:
            return _Matrix(linear, n, k, weight.scheme, (weight.scheme, k, weight.ordered, weight.offsets))
        if head is not None:
            return _Matrix(linear, n, k, head.scheme(k), (head.scheme(k), k))
        return _Matrix(linear, n, k, None, (self._kept[name].dtype, k))

    def _multiplied(self, group: Sequence[_Matrix], head: HeadInEightBits | None) -> list[_core.Weight]:
        """The weights to multiply by for matrices of one kind."""
        scheme = group[0].scheme
        if scheme is None:
            floats = [matrix for one in group if isinstance(matrix := self.matrix(one.linear), Tensor)]
            return [_core.dense((floats[0] if len(floats) == 1 else torch.cat(floats)).contiguous())]

        def pack_all() -> list[Tensor]:
            return packed_side_by_side([self._quantized(one.linear, head) for one in group])

        if self._cache is None:
            packed = pack_all()
        else:
            rows, what = sum(one.n for one in group), {"rows of": [repr(one.linear) for one in group]}
            packed = self._cache.joined(what, scheme, (rows, group[0].k), pack_all)
        return [_weight(one, scheme) for one in packed]

    def _quantized(self, linear: Linear, head: HeadInEightBits | None) -> QTensor:
        matrix = self.matrix(linear)
        if isinstance(matrix, QTensor):
            return matrix
        assert head is not None  # a matrix of floats has a scheme for it alone
        return head.quantize(matrix, linear.weight)

    def stack(self, name: str, count: int) -> list[_core.Weight]:
        """The matrices of a stack [count, N, K]."""
        shape, weight = self.shape(name), self._weights.get(self.stored_name(name))
        if len(shape) != 3 or shape[0] != count:
            raise self._misshapen(name, f"a stack of {count} matrices")
        if weight is not None and self._cache is not None:
            return [_weight(packed, weight.scheme) for packed in self._cache.packed(self.stored_name(name))]
        whole = self.read(name)
        if isinstance(whole, QTensor):
            return [_weight(pack(matrix), matrix.scheme) for matrix in whole.matrices()]
        return [_core.dense(matrix) for matrix in whole]

    def table(self, name: str) -> _core.Table:
        """Rows [N, K] to look up."""
        if len(self.shape(name)) != 2:
            raise self._misshapen(name, "a matrix")
        stored = self.stored_name(name)
        if stored in self._weights and self._cache is not None:
            return _core.packed_table(self._cache.packed(stored))
        whole = self.read(name)
        return _core.packed_table(pack(whole)) if isinstance(whole, QTensor) else _core.table(whole)


def _weight(packed: Tensor, scheme: Scheme) -> _core.Weight:
    return _core.packed(packed, _core.Compute[scheme.compute_dtype], scheme.outlier_threshold)


def _rows(whole: QTensor | Tensor, index: Tensor) -> QTensor | Tensor:
    if len(index) == whole.shape[0] and bool((index == torch.arange(len(index))).all()):
        return whole
    return whole.rows(index) if isinstance(whole, QTensor) else whole[index]
