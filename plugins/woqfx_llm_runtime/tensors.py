"""The tensors of a checkpoint, as the engine takes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from woqfx import QTensor, Scheme, StoredModel, quantize_nearest, registry
from woqfx.errors import CheckpointError
from woqfx_llm_runtime import _core
from woqfx_llm_runtime.description import Linear
from woqfx_native.packed import pack

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

#: How a head that the checkpoint keeps is held in 8 bits.
_HEAD_GROUP = 32


@dataclass(frozen=True)
class HeadInEightBits:
    """Quantize a kept matrix to 8 bits in groups of 32, to be multiplied in this compute dtype."""

    compute_dtype: str

    def quantize(self, weight: Tensor, name: str) -> QTensor:
        """The matrix [N, K] rounded to the nearest codes."""
        group = min(_HEAD_GROUP, weight.shape[1])
        scheme = Scheme(dtype="int8", group_size=group, scale_dtype="fp16", compute_dtype=self.compute_dtype)
        return quantize_nearest(weight, registry().dtype("int8"), scheme, name=name)


class Tensors:
    """Reads tensors by name, and remembers which were asked for."""

    def __init__(self, stored: StoredModel) -> None:
        self.stored = stored
        self._kept = frozenset(stored.kept)
        self._used: set[str] = set()
        self._last: tuple[str, QTensor | Tensor] | None = None

    def stored_name(self, name: str) -> str:
        """The name that a tensor is stored under. Raises `CheckpointError` if there is none."""
        name = self.stored.aliases.get(name, name)
        if name not in self.stored.weights and name not in self._kept:
            raise CheckpointError(f"{self.stored.label} lacks {name}, which its architecture needs")
        self._used.add(name)
        return name

    def unused(self) -> list[str]:
        """The checkpoint's tensors that nobody asked for."""
        return [name for name in (*self.stored.weights, *self.stored.kept) if name not in self._used]

    def read(self, name: str) -> QTensor | Tensor:
        """A quantized weight, or a kept tensor of a type that the engine takes."""
        name = self.stored_name(name)
        if self._last is None or self._last[0] != name:  # parts of a fused weight are asked for one after the other
            self._last = name, self._read(name)
        return self._last[1]

    def _read(self, name: str) -> QTensor | Tensor:
        if name in self.stored.weights:
            return self.stored.read_weight(name)
        tensor = self.stored.read_kept(name)
        return (tensor if tensor.dtype in _FLOATS else tensor.float()).detach().contiguous()

    def vector(self, name: str, size: int | None = None) -> list[float]:
        """A kept vector as float32 numbers."""
        tensor = self.read(name)
        if not isinstance(tensor, Tensor) or tensor.dim() != 1 or (size is not None and len(tensor) != size):
            raise self._misshapen(name, tensor, "a kept vector" + (f" of {size}" if size is not None else ""))
        numbers: list[float] = tensor.float().tolist()
        return numbers

    def matrix(self, linear: Linear) -> QTensor | Tensor:
        """The rows [N, K] of a linear layer."""
        whole = self.read(linear.weight)
        if len(whole.shape) != 2:
            raise self._misshapen(linear.weight, whole, "a matrix")
        if isinstance(whole, Tensor) and linear.transposed:
            whole = whole.T
        return whole if not linear.rows else _rows(whole, self._index(linear, whole.shape[0]))

    def _misshapen(self, name: str, found: QTensor | Tensor, needed: str) -> CheckpointError:
        return CheckpointError(
            f"{self.stored.label}: {name} has shape {list(found.shape)}, where its architecture has {needed}"
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
        matrices = [self.matrix(linear) for linear in linears]
        if head is not None:
            matrices = [
                head.quantize(matrix, linear.weight) if isinstance(matrix, Tensor) else matrix
                for matrix, linear in zip(matrices, linears, strict=True)
            ]
        biases = [self.bias(linear, m.shape[0]) for linear, m in zip(linears, matrices, strict=True)]
        joined: list[float] = []
        if any(bias is not None for bias in biases):
            for bias, matrix in zip(biases, matrices, strict=True):
                joined += bias if bias is not None else [0.0] * matrix.shape[0]
        return _core.Projection([weight_of(part) for part in _fused(matrices)], joined)

    def stack(self, name: str, count: int) -> list[_core.Weight]:
        """The matrices of a stack [count, N, K]."""
        whole = self.read(name)
        if len(whole.shape) != 3 or whole.shape[0] != count:
            raise self._misshapen(name, whole, f"a stack of {count} matrices")
        return [weight_of(whole[i]) for i in range(count)]

    def table(self, name: str) -> _core.Table:
        """Rows [N, K] to look up."""
        whole = self.read(name)
        if len(whole.shape) != 2:
            raise self._misshapen(name, whole, "a matrix")
        return _core.packed_table(pack(whole)) if isinstance(whole, QTensor) else _core.table(whole)


def weight_of(matrix: QTensor | Tensor) -> _core.Weight:
    """A matrix [N, K] in the layout that its kernel reads."""
    if isinstance(matrix, Tensor):
        return _core.dense(matrix.contiguous())
    return _core.packed(pack(matrix), _core.Compute[matrix.scheme.compute_dtype], matrix.scheme.outlier_threshold)


def _rows(whole: QTensor | Tensor, index: Tensor) -> QTensor | Tensor:
    if len(index) == whole.shape[0] and bool((index == torch.arange(len(index))).all()):
        return whole
    return whole.rows(index) if isinstance(whole, QTensor) else whole[index]


def _fused(matrices: Iterable[QTensor | Tensor]) -> list[QTensor | Tensor]:
    """Neighbours that one kernel can multiply by at once, joined."""
    runs: list[list[QTensor | Tensor]] = []
    for matrix in matrices:
        if runs and _alike(runs[-1][-1], matrix):
            runs[-1].append(matrix)
        else:
            runs.append([matrix])
    return [run[0] if len(run) == 1 else _join(run) for run in runs]


def _alike(a: QTensor | Tensor, b: QTensor | Tensor) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and a.shape[1] == b.shape[1]
    if (a.scheme, a.shape[1], a.tensors().keys()) != (b.scheme, b.shape[1], b.tensors().keys()):
        return False
    return a.order is None or b.order is None or torch.equal(a.order, b.order)


def _join(matrices: Sequence[QTensor | Tensor]) -> QTensor | Tensor:
    if isinstance(matrices[0], Tensor):
        return torch.cat([matrix for matrix in matrices if isinstance(matrix, Tensor)])
    plain = [matrix.rows(slice(None)) for matrix in matrices if isinstance(matrix, QTensor)]
    first, tensors = plain[0], [matrix.tensors() for matrix in plain]
    parts = {
        suffix: part if suffix == "order" else torch.cat([own[suffix] for own in tensors])
        for suffix, part in tensors[0].items()
    }
    shape = (sum(matrix.shape[0] for matrix in plain), first.shape[1])
    return QTensor.of_parts(first.dtype, first.scheme, shape, parts)
