"""Choosing the next token: what transformers' logits processors and its sampling loop choose, sooner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

#: From tokens int64 [B, n] and scores float32 [B, V] to scores: a `LogitsProcessor` is one.
Process = Callable[[Tensor, Tensor], Tensor]


class Sampling(NamedTuple):
    """What is done to scores before one is drawn, in this order; the defaults do nothing."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


class Choose:
    """Applies processors in order, then takes the likeliest token, or draws one.

    Without a `generator`, random numbers are PyTorch's global ones. So a seed gives the tokens that it gives in
    transformers' own loop.

    If it samples, the processors at the end that are temperature, top-k, top-p and min-p, in the order of `generate`,
    are `sampling`: an engine may do these and draw.
    """

    def __init__(self, processors: Sequence[Any], *, sample: bool, generator: torch.Generator | None = None) -> None:
        self.generator = torch.default_generator if generator is None else generator
        split, sampling = _sampling(processors) if sample else (len(processors), None)
        self.sampling: Sampling | None = sampling
        self._first: list[Process] = [_penalizing(one) for one in processors[:split]]
        self._last: list[Process] = list(processors[split:])
        #: Whether a processor may hold on to scores that it has seen.
        self.keeps_scores = any(one is given for one, given in zip(self._first, processors, strict=False))

    @property
    def prepares(self) -> bool:
        """Whether there is something to do before `sampling`."""
        return bool(self._first)

    def prepare(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """Scores [B, V] before `sampling`, from the tokens so far [B, n] and logits [B, V], which may be written to."""
        for process in self._first:
            logits = process(tokens, logits)
        return logits

    def decide(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """The next tokens int64 [B] of prepared scores."""
        for process in self._last:
            scores = process(tokens, scores)
        if self.sampling is None:
            return scores.argmax(-1)
        return torch.multinomial(scores.softmax(-1), 1, generator=self.generator).squeeze(1)

    def __call__(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """The next tokens int64 [B], given those so far [B, n] and logits [B, V], which may be written to."""
        return self.decide(tokens, self.prepare(tokens, logits))


def _penalizing(processor: Any) -> Process:
    """As the repetition penalty of transformers, for tokens of the vocabulary, with one copy of the scores."""
    found: Process = processor
    if type(processor) is not RepetitionPenaltyLogitsProcessor or processor.prompt_ignore_length is not None:
        return found
    penalty = processor.penalty

    def penalize(tokens: Tensor, scores: Tensor) -> Tensor:
        old = scores.gather(1, tokens)
        return scores.scatter(1, tokens, torch.where(old < 0, old * penalty, old / penalty))

    return penalize


def _sampling(processors: Sequence[Any]) -> tuple[int, Sampling]:
    """How many processors come before the last that a `Sampling` can say, and what these do."""
    for begin in range(len(processors)):
        found = [_known(one) for one in processors[begin:]]
        names = [name for one in found for name in one]
        if all(found) and names == [name for name in Sampling._fields if name in names]:
            return begin, Sampling(**{name: value for one in found for name, value in one.items()})
    return len(processors), Sampling()


def _known(processor: Any) -> dict[str, Any]:
    """What one of transformers' own processors sets in a `Sampling`."""
    if type(processor) is TemperatureLogitsWarper:
        return {"temperature": processor.temperature}
    if getattr(processor, "filter_value", None) != -float("inf"):
        return {}
    if type(processor) is TopKLogitsWarper:
        return {"top_k": processor.top_k}
    if type(processor) is TopPLogitsWarper and processor.min_tokens_to_keep == 1:
        return {"top_p": processor.top_p}
    if type(processor) is MinPLogitsWarper and processor.min_tokens_to_keep == 1:
        return {"min_p": processor.min_p}
    return {}


def look_up(tokens: Tensor, *, count: int, longest: int) -> Tensor:
    """Guess what comes next: what came after the latest earlier place that has the same last tokens.

    `tokens` int64 [n]. The last `longest` tokens are looked for, then fewer; up to `count` guesses, often
    none (prompt lookup decoding).
    """
    for size in range(min(longest, len(tokens) - 1), 0, -1):
        windows = tokens[:-1].unfold(0, size, 1)
        places = torch.nonzero((windows == tokens[-size:]).all(-1))
        if len(places):
            begin = int(places[-1]) + size
            return tokens[begin : begin + count]
    return tokens[:0]
