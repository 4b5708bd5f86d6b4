"""Finding what feeds which weights of a block, by experiment.

No architecture is known here. For each norm and each linear the block is run with its output channels multiplied, each
by a factor of its own. A weight whose input channels all come out multiplied by such factors is fed by it, and the
factors tell which channel goes where: through grouped-query attention, a gate or a ReLU alike. What has been found
is folded with random powers of two, and kept only if the block's output stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from woqfx.blocks.block import Feed
from woqfx.blocks.folding import divide, fold

if TYPE_CHECKING:
    from woqfx.blocks.block import Block

#: Rows of each input that are compared.
_ROWS = 128
#: Relative differences below this are rounding.
_TOLERANCE = 1e-4
#: Factors are spread from the first number to that times the second: 1, an unchanged channel, is not among them.
_LEAST, _SPAN = 1.5, 4.0

#: For one weight, the inputs [rows, K] that each of its experts saw.
_Inputs = dict[int, Tensor]


def find_feeds(block: Block, like: Sequence[Feed] = ()) -> tuple[Feed, ...]:
    """What can be rescaled in a block: each feed that reaches a weight to quantize, once.

    Looks at the block's first call alone. `like`, the feeds of a block of the same class, saves the search if
    the block has the same parameters and they hold here too.
    """
    if like and all(_fits(block, feed) for feed in like) and holds(block, like):
        return tuple(like)
    found: list[Feed] = []
    for feed in _Experiment(block).feeds():
        fed = {name for other in found for name in other.consumers}
        # Behind a gate without activation two linears feed the same weight: one is enough.
        if not fed & set(feed.consumers) and set(feed.consumers) & set(block.layers) and holds(block, [feed]):
            found.append(feed)
    return tuple(found)


def holds(block: Block, feeds: Sequence[Feed]) -> bool:
    """Whether the block's output for its first call stays the same when these are folded with random powers of two.

    The yardstick is what happens when only the producers are scaled.
    """
    draw = torch.Generator().manual_seed(0)
    folded, divided = dict(block.parameters), dict(block.parameters)
    for feed in feeds:
        scale = torch.exp2(torch.randint(-2, 3, (feed.size,), generator=draw).float())
        folded |= fold(feed, scale, folded)
        divided |= divide(feed, scale, divided)
    with torch.no_grad():
        before, after, broken = (block.run(block.calls[0], weights) for weights in ({}, folded, divided))
    return float((after - before).norm()) < _TOLERANCE * float((broken - before).norm())


def _fits(block: Block, feed: Feed) -> bool:
    parameters = block.parameters
    return all(
        name in parameters and parameters[name].shape[: index.ndim] == index.shape
        for name, index in feed.producers.items()
    ) and all(
        name in parameters and (*parameters[name].shape[:-2], parameters[name].shape[-1]) == tuple(index.shape)
        for name, index in feed.consumers.items()
    )


@dataclass(frozen=True)
class _Producer:
    """A norm's weight and bias, or a linear's; experts have their `channels` each."""

    names: tuple[str, ...]
    channels: int


class _Experiment:
    """The search in one block."""

    def __init__(self, block: Block) -> None:
        self.block, self.parameters = block, block.parameters
        self.weights = [name for name, tensor in self.parameters.items() if tensor.ndim >= 2]
        with torch.no_grad():
            self.before = self._inputs({})
        #: Widths of the inputs of weights that were not used: on other data they might read what others read.
        self.unsure = {self.parameters[name].shape[-1] for name in self.weights if name not in self.before}

    def feeds(self) -> Iterator[Feed]:
        """Candidates, norms first."""
        for name, tensor in self.parameters.items():
            if tensor.ndim == 1 and len(tensor) > 1 and name.endswith("weight"):
                producer = _Producer(self._with_bias(name), len(tensor))
                yield from self._follow(producer, torch.arange(producer.channels)) or self._follow(
                    producer, torch.arange(producer.channels), one_plus=True
                )
        for producer, channels in self._homogeneous():
            # Where several of its channels meet in a product, halves or thirds of them are scaled alone.
            parts = (part for count in (1, 2, 3) for part in channels.chunk(count))
            yield from next(filter(None, (self._follow(producer, part) for part in parts)), [])

    def _follow(self, producer: _Producer, channels: Tensor, *, one_plus: bool = False) -> list[Feed]:
        """The feed that these channels of a producer make, if they make one."""
        count = len(channels)
        factors = _LEAST * _SPAN ** (torch.arange(count, dtype=torch.float64) / count)
        scale = factors.reciprocal().float()
        number = torch.full((producer.channels,), -1)
        number[channels] = torch.arange(count)
        first = self.parameters[producer.names[0]]
        index = number.expand(_channel_shape(first))
        feed = Feed(
            producer.names[0].removesuffix(".weight"),
            count,
            dict.fromkeys(producer.names, index),
            {},
            frozenset(producer.names[:1] if one_plus else ()),
        )
        while True:  # a router's choice must be put right before its experts can be compared
            with torch.no_grad():
                after = self._inputs(fold(feed, scale, self.parameters))
            new = {}
            for name in [name for name in self.before if name not in feed.consumers]:
                found = _match(self.before[name], after.get(name, {}), factors)
                if found is not None and bool((found >= 0).any()):
                    new[name] = found.expand(*self.parameters[name].shape[:-2], -1)
            if not new:
                break
            feed = replace(feed, consumers={**feed.consumers, **new})
        if not feed.consumers or self.unsure & {index.shape[-1] for index in feed.consumers.values()}:
            return []
        return [_renumbered(feed, first.shape[0] if first.ndim == 3 else 0)]

    def _homogeneous(self) -> Iterator[tuple[_Producer, Tensor]]:
        """Linears, with those of their output channels to which a later input is proportional.

        If a factor s at channel n multiplies some columns of an input x [rows, K] by s, and leaves the others, then the
        derivative of those columns by s is x at s = 1, and 0 of the others. So for any c [rows, K] whose every column
        is orthogonal to that of x, the derivative of sum(c x) is 0: a backward pass tells it of all channels.
        """
        producers = [_Producer(self._with_bias(name), self.parameters[name].shape[-2]) for name in self.before]
        factors = [torch.ones(producer.channels, requires_grad=True) for producer in producers]
        scaled = {}
        with torch.enable_grad():
            for producer, factor in zip(producers, factors, strict=True):
                weight, *bias = producer.names
                scaled[weight] = self.parameters[weight] * factor.unsqueeze(-1)
                scaled |= {name: self.parameters[name] * factor for name in bias}
            reached = self._inputs(scaled)
        inputs = {next(iter(seen.values())).data_ptr(): list(seen.values()) for seen in reached.values()}
        for columns in inputs.values():
            if not columns[0].requires_grad:
                continue
            # Two draws of c: one of them may miss a channel by chance.
            cotangents = [[c(x.detach()) for x in columns] for c in (torch.sign, _orthogonal(0), _orthogonal(1))]
            size, *rest = (
                torch.autograd.grad(columns, factors, c, retain_graph=True, materialize_grads=True) for c in cotangents
            )
            for producer, whole, *off in zip(producers, size, *rest, strict=True):
                small = torch.stack([part.abs() for part in off]).amax(0) < _TOLERANCE * whole
                channels = small.nonzero().squeeze(1)
                if len(channels):
                    yield producer, channels

    def _inputs(self, changed: dict[str, Tensor]) -> dict[str, _Inputs]:
        """Some rows of what each weight multiplies, in the order of use."""
        seen: dict[str, _Inputs] = {}

        def see(name: str, expert: int, x: Tensor) -> None:
            rows = x.reshape(-1, x.shape[-1])
            seen.setdefault(name, {})[expert] = rows[:: max(1, len(rows) // _ROWS)]

        self.block.observe(self.block.calls[0], self.weights, see, changed)
        return seen

    def _with_bias(self, name: str) -> tuple[str, ...]:
        bias = name.removesuffix("weight") + "bias" if name.endswith("weight") else f"{name}_bias"
        shape = _channel_shape(self.parameters[name])
        return (name, bias) if bias in self.parameters and self.parameters[bias].shape == shape else (name,)


def _channel_shape(parameter: Tensor) -> torch.Size:
    return parameter.shape if parameter.ndim == 1 else parameter.shape[:-1]


def _match(before: _Inputs, after: _Inputs, factors: Tensor) -> Tensor | None:
    """Which of the factors, float64 [n], each input channel was multiplied by: [K], -1 for none.

    Channels that are always 0 count as unchanged. None if some channel has changed in another way.
    """
    if before.keys() != after.keys() or any(before[e].shape != after[e].shape for e in before):
        return None
    result: Tensor | None = None
    for expert, x in before.items():
        old, new = x.double(), after[expert].double()
        alive = (old != 0).any(0)
        ratio = torch.where(alive, (old * new).sum(0) / old.square().sum(0), 1.0)
        place = (torch.log(ratio.clamp(min=1e-9) / _LEAST) / math.log(_SPAN) * len(factors)).round()
        index = torch.where((ratio - 1).abs() < _TOLERANCE, -1, place.clamp(0, len(factors) - 1).long())
        expected = old * torch.where(index < 0, 1.0, factors[index])
        if bool(((new - expected).norm(dim=0) > _TOLERANCE * new.norm(dim=0)).any()):
            return None
        if result is None:
            result = index
        elif bool(((result != index) & alive & (result >= 0)).any()):
            return None  # experts that are not alike
        else:
            result = torch.where(alive, index, result)
    return result


def _renumbered(feed: Feed, experts: int) -> Feed:
    """Only the scales that are read; those of experts that feed themselves, one after the other."""
    read = torch.zeros(feed.size + 1, dtype=torch.bool)  # the last is that of -1
    for index in feed.consumers.values():
        read[index] = True
    read[-1] = False
    number = torch.where(read, read.cumsum(0) - 1, -1)
    count = int(read.sum())
    offset = torch.arange(experts).unsqueeze(-1) * count

    def renumber(index: Tensor) -> Tensor:
        return torch.where(number[index] < 0, -1, number[index] + (offset if index.ndim == 2 and experts else 0))

    return replace(
        feed,
        size=count * max(1, experts),
        producers={name: renumber(index) for name, index in feed.producers.items()},
        consumers={name: renumber(index) for name, index in feed.consumers.items()},
    )


def _orthogonal(seed: int) -> Callable[[Tensor], Tensor]:
    """Gives random numbers like x [rows, K], each column orthogonal to that of x."""

    def draw(x: Tensor) -> Tensor:
        x = x.double()
        c = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
        return (c - x * ((c * x).sum(0) / x.square().sum(0).clamp(min=1e-300))).float()

    return draw
