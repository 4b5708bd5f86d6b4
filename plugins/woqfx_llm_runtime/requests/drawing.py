"""Drawing tokens in the engine, as `torch.multinomial` draws them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from woqfx_llm_runtime.requests.choosing import Choose, Sampling

if TYPE_CHECKING:
    from woqfx_llm_runtime._core import Engine

#: Where the engine gets random numbers from: a generator's state, or numbers that PyTorch has made of it.
_Source: TypeAlias = Literal["state", "numbers"]
_UNDECIDED = -1


class Draw:
    """One draw for rows of a request: scores float32 [V] each, None for a row that has ended.

    `tokens` int64 [B, n] are those so far, in case it is transformers' processors that decide.
    """

    def __init__(self, choose: Choose, tokens: Tensor, scores: Sequence[Tensor | None]) -> None:
        self.choose, self._tokens, self.scores = choose, tokens, scores
        self._drawn: list[int] | None = None

    @property
    def settled(self) -> bool:
        """Whether the engine has drawn."""
        return self._drawn is not None

    def settle(self, drawn: list[int], state: Tensor) -> None:
        """What the engine has drawn, and the generator's state afterwards."""
        self._drawn = drawn
        self.choose.generator.set_state(state)

    @property
    def result(self) -> list[int]:
        """A token for each row."""
        if self._drawn is None:
            self._drawn = self.choose.decide(self._tokens, stacked(self.scores)).tolist()
        return self._drawn


class Drawer:
    """Lets an engine draw, where it draws what PyTorch would; the rest is left to PyTorch."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def draw(self, draws: Sequence[Draw]) -> None:
        """Make some draws, all rows at once. Those that are not `settled` then are not for the engine, or too close."""
        left = [draw for draw in draws if draw.choose.sampling is not None and _fits(draw.choose.sampling)]
        while left and self._source is not None:
            first = {draw.choose.generator: draw for draw in reversed(left)}  # those that share one take turns
            self._draw(list(first.values()), self._source)
            left = [draw for draw in left if first[draw.choose.generator] is not draw]

    def _draw(self, draws: Sequence[Draw], source: _Source) -> None:
        states = [draw.choose.generator.get_state() for draw in draws]
        asked: list[Any] = []
        for draw, state in zip(draws, states, strict=True):
            rows = [None if row is None else row.numpy() for row in draw.scores]
            noise = None
            if source == "numbers":
                noise = torch.empty(len(rows), self._engine.vocab_size)
                noise.exponential_(generator=draw.choose.generator)
                after = draw.choose.generator.get_state()
                draw.choose.generator.set_state(state)
                state.copy_(after)
            sampling = draw.choose.sampling
            assert sampling is not None
            sampling = sampling._replace(top_k=min(sampling.top_k, self._engine.vocab_size))
            asked.append((sampling, rows, None if noise is not None else state.numpy(), noise))
        for draw, state, drawn in zip(draws, states, self._engine.draw(asked), strict=True):
            if _UNDECIDED not in drawn:
                draw.settle(drawn, state)

    @cached_property
    def _source(self) -> _Source | None:
        """Tried out: how `torch.multinomial` makes random numbers depends on PyTorch's build and the processor."""
        sources: tuple[_Source, ...] = ("state", "numbers")
        return next((source for source in sources if all(self._agrees(source, seed) for seed in range(3))), None)

    def _agrees(self, source: _Source, seed: int) -> bool:
        own, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
        scores = [torch.zeros(self._engine.vocab_size), torch.zeros(self._engine.vocab_size)]
        draw = Draw(_choose(own), torch.empty(2, 0, dtype=torch.int64), scores)
        self._draw([draw], source)
        same = draw.settled and draw.result == _choose(theirs).decide(torch.empty(0), torch.stack(scores)).tolist()
        return same and torch.equal(own.get_state(), theirs.get_state())


def _fits(sampling: Sampling) -> bool:
    """Whether a temperature is above 0 in the engine's float32. What is made of another is PyTorch's business."""
    return bool(np.float32(sampling.temperature) > 0)


def _choose(generator: torch.Generator) -> Choose:
    return Choose([], sample=True, generator=generator)


def stacked(rows: Iterable[Tensor | None]) -> Tensor:
    """Rows [V] as [B, V]; 0 for those that have ended."""
    given = list(rows)
    size = next(row for row in given if row is not None)
    return torch.stack([torch.zeros_like(size) if row is None else row for row in given])
