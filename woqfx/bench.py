"""How fast linear layers are: contenders of any kind take turns, on weights that no cache holds."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from woqfx.backend import Backend
from woqfx.nearest import quantize_nearest
from woqfx.qtensor import QTensor
from woqfx.roofline import Roofline, last_level_cache
from woqfx.scheme import Scheme

#: Takes activations [rows, K] and gives [rows, N].
Multiply = Callable[[Tensor], object]

_ROUNDS = 5
#: Between contenders: threads of PyTorch and others wait for more work by spinning, and take the next one's processors.
_REST_SECONDS = 0.02
_MOST_COPIES = 512


@dataclass(frozen=True)
class Contender:
    """A weight [N, K] in some form, and what multiplies by it.

    `copies` together exceed the last-level cache: a model's layers come one after the other, and none is in the cache
    when its turn comes. `nbytes` is the size of one, `x_dtype` the type of activations that it takes.
    """

    name: str
    dtype: str
    compute_dtype: str
    group_size: int
    kernel: str
    nbytes: int
    x_dtype: torch.dtype
    copies: Sequence[Multiply]


@dataclass(frozen=True)
class Figure:
    """What was measured: the median `seconds` that a contender took for `rows` rows of activations.

    `limits` are the machine's at that time: neighbours use the same memory, now more and now less.
    """

    name: str
    dtype: str
    compute_dtype: str
    group_size: int
    kernel: str
    shape: tuple[int, int]
    rows: int
    nbytes: int
    seconds: float
    limits: Roofline

    @property
    def operations(self) -> int:
        """A multiply-add counts as two."""
        return 2 * self.rows * self.shape[0] * self.shape[1]

    @property
    def share(self) -> float:
        """How much of what the machine can do at most: 1 is at its limit, of memory or of arithmetic."""
        return self.limits.least_seconds(self.nbytes, self.operations, self.compute_dtype) / self.seconds

    @property
    def bound(self) -> str:
        """Which limit that is: `memory` or `arithmetic`."""
        return self.limits.bound(self.nbytes, self.operations, self.compute_dtype)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, what follows from the fields included."""
        derived = {"operations": self.operations, "share": self.share, "bound": self.bound}
        return {**dataclasses.asdict(self), **derived}


def random_weight(shape: tuple[int, int]) -> Tensor:
    """Normal numbers as models' weights have them, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul_(0.02)


def activations(rows: int, k: int) -> Tensor:
    """Normal numbers [rows, k], the same every time."""
    return torch.randn(rows, k, generator=torch.Generator().manual_seed(1))


def activation_dtype(compute_dtype: str) -> torch.dtype:
    """The type of activations that a compute dtype is measured with: that of models which are run so."""
    return torch.bfloat16 if compute_dtype == "bf16" else torch.float32


def copies_of(nbytes: int) -> int:
    """How many weights of this size it takes to leave nothing of one in the cache when its turn comes again.

    Four times the last-level cache: caches do not simply drop what is oldest, and at twice their size a tenth to a
    fifth was still found there (AMD Zen 4).
    """
    return min(2 + 4 * last_level_cache() // nbytes, _MOST_COPIES)


def contenders(
    backend: Backend, weight: Tensor, schemes: Iterable[Scheme], refused: list[tuple[Scheme, str]]
) -> Iterator[Contender]:
    """Each scheme of one weight as `backend` runs it. Those that it does not run are put into `refused`, with why."""
    from woqfx.cpu import this_cpu
    from woqfx.plugins import registry

    for scheme in schemes:
        dtype = registry().dtype(scheme.dtype)
        support = backend.supports(scheme, dtype, tuple(weight.shape), this_cpu())
        if not support.ok:
            refused.append((scheme, support.reason))
            continue
        q = quantize_nearest(weight, dtype, scheme, name="weight")
        x_dtype = activation_dtype(scheme.compute_dtype)
        packed = [backend.pack(_copy(q), x_dtype) for _ in range(copies_of(q.nbytes))]
        yield Contender(
            "woqfx", scheme.dtype, scheme.compute_dtype, scheme.group_size, packed[0].kernel, q.nbytes, x_dtype,
            [one.linear for one in packed],
        )  # fmt: skip


def _copy(q: QTensor) -> QTensor:
    """The same in memory of its own: a backend may keep what it is given."""
    return QTensor.of_parts(q.dtype, q.scheme, q.shape, {name: part.clone() for name, part in q.tensors().items()})


def measure(
    field: Sequence[Contender], shape: tuple[int, int], rows: int, seconds: float, limits: Callable[[], Roofline]
) -> list[Figure]:
    """Let all multiply `rows` rows, in turn, each for about this long in all; the medians of single calls.

    `limits` measures the machine's, once in each round.
    """
    x = activations(rows, shape[1])
    typed = {dtype: x.to(dtype) for dtype in {one.x_dtype for one in field}}
    around = list[Roofline]()
    with torch.inference_mode():
        for one in field:
            for multiply in one.copies:
                multiply(typed[one.x_dtype][:1])  # some prepare a weight when it is first used
        bursts = {index: _burst_of(one.copies, typed[one.x_dtype]) for index, one in enumerate(field)}
        taken = take_turns(bursts, seconds, lambda: around.append(limits()))
    keys = ("name", "dtype", "compute_dtype", "group_size", "kernel", "nbytes")
    middle = Roofline.middle(around)
    return [
        Figure(**{key: getattr(one, key) for key in keys}, shape=shape, rows=rows, seconds=taken[index], limits=middle)
        for index, one in enumerate(field)
    ]


def take_turns(
    bursts: Mapping[Any, Callable[[float], Sequence[float]]], seconds: float, before_round: Callable[[], object]
) -> dict[Any, float]:
    """Ask each in turn, several times over, for a burst of calls; the median of each one's single calls.

    `bursts` run for the time that they are given, one call at least, and tell the seconds of each call. Slow ones,
    which take longer, are asked less often.
    """
    taken: dict[Any, list[float]] = {key: [] for key in bursts}
    for _ in range(_ROUNDS):
        before_round()
        for key, burst in bursts.items():
            if sum(taken[key]) < seconds:
                time.sleep(_REST_SECONDS)
                taken[key] += burst(seconds / _ROUNDS)
    return {key: statistics.median(found) for key, found in taken.items()}


def _burst_of(copies: Sequence[Multiply], x: Tensor) -> Callable[[float], Sequence[float]]:
    return lambda seconds: burst(copies, x, seconds)


def burst(copies: Sequence[Multiply], x: Tensor, seconds: float) -> list[float]:
    """Call the copies one after the other for this long; the seconds of each call after the first."""
    taken = list[float]()
    turn = itertools.cycle(copies)
    next(turn)(x)
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        multiply = next(turn)
        start = time.perf_counter()
        multiply(x)
        taken.append(time.perf_counter() - start)
    return taken
