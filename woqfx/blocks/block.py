"""`Block`: one repeated block of a model, in float, with the data that reaches it. What data-driven algorithms see."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from woqfx.algorithm import Layer, Statistics
from woqfx.blocks.products import ProductWatch
from woqfx.blocks.statistics import Gathered, collect, find_groups

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one batch of the model's own call of a block. No batch holds padding."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Feed:
    """What feeds some weights: dividing its output by a positive scale and multiplying theirs changes nothing.

    `producers` are parameters (a norm's weight and bias; the rows of a linear's weight and bias) with, for each, the
    scale that each element (of a vector) or row (of a weight [..., N, K]) is divided by: int64 indices [n] or
    [..., N] into the scale, -1 for none. `one_plus` names those that hold w where the norm multiplies by 1 + w.
    `consumers` are weights [..., N, K], quantized or not, with the scale that each of their input channels is
    multiplied by: indices [..., K]. `size` is the number of scales. All names are the block's own
    (`self_attn.q_proj.weight`). `woqfx.blocks.folding.fold` does it.
    """

    name: str
    size: int
    producers: Mapping[str, Tensor]
    consumers: Mapping[str, Tensor]
    one_plus: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Block:
    """One repeated block of a model: float32 weights, the calibration batches that reach it, and its float outputs.

    `layers` are the weights to quantize, in the order of their use, by their parameter's name within the block
    (`self_attn.q_proj.weight`); `parameters` all its parameters, weights as [N, K] whatever the storage.
    `feeds` is what can be rescaled. `targets[i]` is what the block shall give for `calls[i]`: [batch, length, hidden].
    Immutable; algorithms never change its tensors.
    """

    name: str
    module: nn.Module
    layers: Mapping[str, Layer]
    parameters: Mapping[str, Tensor]
    calls: Sequence[Call]
    targets: Sequence[Tensor]
    feeds: tuple[Feed, ...] = ()
    #: What the algorithm's own `survey` of the whole model gave.
    surveyed: Mapping[str, Tensor] = field(default_factory=dict)
    #: Parameters that the module stores as [K, N].
    transposed: frozenset[str] = frozenset()
    #: Threads that work side by side; each runs one batch at a time.
    workers: int = 1
    note: Callable[..., None] = field(default=lambda **facts: None)
    #: Statistics in float that are known already.
    gathered: Gathered = field(default_factory=Gathered)
    _replicas: _Replicas = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_replicas", _Replicas(self.module))

    def run(self, call: Call, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The block's hidden states for a batch, [batch, length, hidden], with some parameters replaced.

        Differentiable in the replacements, which are [N, K] for weights. One thread; parallelise over batches by `map`.
        """
        return first_tensor(self.outputs(call, weights))

    def outputs(self, call: Call, weights: Mapping[str, Tensor] | None = None) -> Any:
        """All that the block gives for a batch, as the model's own call gets it. See `run`."""
        return self._call(call, self._stored(weights))

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`[function(item) for item in items]`, several at a time, results in order."""
        if self.workers == 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(self.workers, "woqfx-block") as pool:
            return list(pool.map(function, items))

    def error(self, weights: Mapping[str, Tensor]) -> float:
        """|run - target|^2 / |target|^2 over all batches, with `weights` in place of the float ones."""

        def one(index: int) -> tuple[float, float]:
            with torch.no_grad():
                target = self.targets[index].float()
                off = self.run(self.calls[index], weights).float() - target
            return float(off.square().sum(dtype=torch.float64)), float(target.square().sum(dtype=torch.float64))

        pairs = self.map(one, range(len(self.calls)))
        size = sum(norm for _, norm in pairs)
        return sum(off for off, _ in pairs) / size if size else 0.0

    def statistics(
        self, names: Sequence[str], weights: Mapping[str, Tensor] | None = None
    ) -> dict[str, list[Statistics]]:
        """Statistics of the inputs of these weights, others replaced by `weights`: a list of one, or of experts.

        Those of the float block are kept, and cost nothing when they are asked for again.
        """
        groups = find_groups(self, names)
        return self.gathered.get(self, groups) if weights is None else collect(self, groups, weights)

    def observe(
        self,
        call: Call,
        names: Sequence[str],
        see: Callable[[str, int, Tensor], None],
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Run a batch, and call `see(name, expert, x)` with each input x [..., K] that these weights multiply.

        Differentiable, as `run` is.
        """
        stored = self._stored(weights)
        with ProductWatch({name: stored[name] for name in names}, see):
            return first_tensor(self._call(call, stored))

    def products(self, call: Call, names: Sequence[str]) -> tuple[Tensor, list[tuple[str, Tensor]]]:
        """Run a batch: its hidden states, as `run` gives them, and each product with these weights, in order.

        The hidden states can be differentiated by the products.
        """
        made: list[tuple[str, Tensor]] = []
        stored = self._stored({name: self.parameters[name].detach().requires_grad_() for name in names})
        with ProductWatch({name: stored[name] for name in names}, made=lambda *product: made.append(product)):
            return first_tensor(self._call(call, stored)), made

    def _stored(self, weights: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """All parameters, some replaced, as the module stores them."""
        current = {**self.parameters, **(weights or {})}
        return {name: tensor.T if name in self.transposed else tensor for name, tensor in current.items()}

    def _call(self, call: Call, stored: Mapping[str, Tensor]) -> Any:
        with self._replicas.borrowed() as module:
            return functional_call(module, dict(stored), call.args, dict(call.kwargs))


def first_tensor(output: Any) -> Tensor:
    """The hidden states among what a block returned: the tensor itself, or the first of a tuple."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output


class _Replicas:
    """Copies of a module for threads that run it side by side: each puts its own parameters in for the time it runs."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._idle: deque[nn.Module] = deque()

    @contextmanager
    def borrowed(self) -> Iterator[nn.Module]:
        """A copy that nobody else runs. Parameters are not copied."""
        try:
            module = self._idle.pop()
        except IndexError:
            module = copy.deepcopy(self._module, {id(p): p for p in self._module.parameters()})
        try:
            yield module
        finally:
            self._idle.append(module)
