"""Backends: what runs a quantized model on this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from woqfx.cpu import CPU
from woqfx.dtype import DType
from woqfx.options import NoOptions
from woqfx.qtensor import QTensor
from woqfx.roofline import Roofline, measured_with_torch
from woqfx.scheme import Scheme

if TYPE_CHECKING:
    from woqfx.format import StoredModel


@dataclass(frozen=True)
class Support:
    """A backend's answer for one layer: which kernel would run it and why, or why none can.

    `remedy` says what would work, when `ok` is false.
    """

    ok: bool
    kernel: str = ""
    reason: str = ""
    remedy: str = ""


class PackedWeight(nn.Module, ABC):
    """A quantized weight as a backend holds it, standing where the module tree had a parameter.

    Linear layers, embeddings, tied heads and stacks of experts all hold one of these, so a backend
    that can pack a `QTensor` and multiply by it runs every kind of layer. What it registers as
    buffers is its own affair; checkpoints are written from `qtensor()`.
    """

    def __init__(self, q: QTensor, float_dtype: torch.dtype, kernel: str) -> None:
        super().__init__()
        self.grid, self.scheme, self.shape = q.dtype, q.scheme, torch.Size(q.shape)
        #: The type that the weight had: model code asks a parameter for it.
        self.dtype = float_dtype
        #: What multiplies by this weight, for `woqfx inspect`.
        self.kernel = kernel

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    @abstractmethod
    def qtensor(self) -> QTensor:
        """The weight in plain codes again, equal in every bit to what was packed."""

    @abstractmethod
    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x @ W.T + bias` for x [..., K], as the scheme's compute dtype defines it; [..., N] in x's type."""

    @abstractmethod
    def expert(self, index: int) -> PackedWeight:
        """One weight [N, K] of a stack [E, N, K], sharing its memory."""

    @abstractmethod
    def rows(self, index: Tensor) -> Tensor:
        """Rows `index` [...] of a weight [N, K] as `float_dtype` [..., K]: an embedding's look-up."""

    @property
    def data(self) -> Tensor:
        """What a parameter holds, and writers into it ask for (adapters that merge): there is no such tensor."""
        raise TypeError("a quantized weight has no dense data: call woqfx.dequantize(model) first")

    @property
    def T(self) -> TransposedWeight:  # noqa: N802 - torch's name
        """For model code that writes `x @ weight.T`."""
        return TransposedWeight(self)

    def dequantize(self) -> Tensor:
        """The whole weight in the type it had."""
        return self.qtensor().dequantize().to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedWeight:
        """`model.to(...)`, `.float()` and the like: codes and scales keep their types; model code sees the new one."""
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        for name, buffer in self._buffers.items():
            if buffer is not None and (moved := fn(buffer)).dtype == buffer.dtype:
                self._buffers[name] = moved
        return self

    def __getitem__(self, index: int | Tensor) -> PackedWeight:
        return self.expert(int(index))

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Stand in for the parameter in the calls that model code makes with it."""
        if func not in _STAND_INS:
            raise TypeError(f"{func.__name__} on a quantized weight: call .dequantize() on the weight first")
        return _STAND_INS[func](*args, **(kwargs or {}))

    def extra_repr(self) -> str:
        """For `print(model)`."""
        scheme = self.scheme
        size = "per channel" if scheme.group_size == -1 else f"group {scheme.group_size}"
        return f"{list(self.shape)}, {scheme.dtype}, {size}, compute {scheme.compute_dtype}, {self.kernel}"


def _linear(input: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    return weight.linear(input, bias)


def _addmm(bias: Tensor, input: Tensor, weight: PackedWeight) -> Tensor:
    # transformers' Conv1D, which stores its weight as [K, N]; packed weights are [N, K] throughout.
    return weight.linear(input, bias)


def _embedding(input: Tensor, weight: PackedWeight, *_: Any, **__: Any) -> Tensor:
    return weight.rows(input)


class TransposedWeight:
    """`weight.T`, good for one thing: `x @ weight.T`."""

    def __init__(self, weight: PackedWeight) -> None:
        self.weight = weight

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Stand in for the transposed parameter in a matrix product."""
        if func not in (torch.Tensor.__matmul__, torch.Tensor.matmul, torch.matmul):
            raise TypeError(f"{func.__name__} on a quantized weight: call .dequantize() on the weight first")
        x, transposed = args
        return transposed.weight.linear(x)


_STAND_INS: dict[Any, Any] = {
    nn.functional.linear: _linear,
    nn.functional.embedding: _embedding,
    torch.addmm: _addmm,
}


class Backend(ABC):
    """Runs quantized weights. It knows this machine, and nothing of algorithms or files."""

    #: The name that the command line uses.
    name: ClassVar[str]
    #: A frozen dataclass: what `backend_options` of `woqfx.load` may set.
    Options: ClassVar[type[Any]] = NoOptions

    @abstractmethod
    def supports(self, scheme: Scheme, dtype: DType, shape: tuple[int, ...], cpu: CPU) -> Support:
        """Whether and how this backend runs a weight [..., N, K]. The plan asks it for every layer."""

    @abstractmethod
    def pack(self, q: QTensor, float_dtype: torch.dtype) -> PackedWeight:
        """Prepare a weight for this machine, in memory. `float_dtype` is the type that the weight had.

        Loading calls it from several threads at once.
        """

    def packer(self, stored: StoredModel, options: Any) -> Callable[[str], PackedWeight]:
        """What gives the weights of a checkpoint, by name, packed. `options` are an instance of `Options`.

        The default reads a weight and packs it; a backend that keeps packed weights in files may have no need to.
        """
        return lambda name: self.pack(stored.read_weight(name), stored.weights[name].float_dtype)

    def reads_weights(self, options: Any) -> bool:
        """Whether loading a checkpoint with these options reads all of its weights, so that they are fetched early.

        The default is yes; a backend that keeps packed weights in files may have no need to.
        """
        return True

    def obstacles(self, model: nn.Module) -> Sequence[str]:
        """Why it cannot run this model as a whole, whatever its weights' schemes: each with what would work.

        `model` may be on the meta device. The default is none: whoever runs packed weights runs any module tree.
        """
        return ()

    def model(self, stored: StoredModel, skeleton: nn.Module, options: Any) -> nn.Module | None:
        """A running model from a checkpoint, for a backend that runs whole models by itself.

        `skeleton` is the module tree that the checkpoint's config describes, which may be on the meta device; each
        tensor of `stored` has a place in it. It must be left as it is. `options` are an instance of `Options`.

        The default is None: each weight is packed, and takes its place in transformers' module tree.
        """
        return None

    def roofline(self, threads: int) -> Roofline:
        """What the machine that it runs on can do at most with this many threads, measured now: for `woqfx bench`.

        The default is what PyTorch reaches.
        """
        return measured_with_torch(threads)

    def __repr__(self) -> str:
        return f"<backend {self.name}>"
