"""Choosing the next token: what transformers' logits processors and its sampling loop choose, sooner."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import MinPLogitsWarper, TopPLogitsWarper

#: From tokens int64 [B, n] and scores float32 [B, V] to scores: a `LogitsProcessor` is one.
Process = Callable[[Tensor, Tensor], Tensor]

#: So many of the likeliest tokens usually hold the mass that top-p asks for.
_CANDIDATES = 256
#: What sums of probabilities in float32, in one order or another, may differ by; beyond doubt, and then some.
_DOUBT = 1e-4


class Choose:
    """Applies processors in order, then takes the likeliest token, or draws one.

    Two of transformers' own processors are replaced by others that find the same tokens without sorting the whole
    vocabulary. Without a `generator`, random numbers are PyTorch's global ones. So a seed gives the tokens that it
    gives in transformers' own loop.
    """

    def __init__(
        self, processors: Iterable[Process], *, sample: bool, generator: torch.Generator | None = None
    ) -> None:
        self._processors = [_quick(processor) for processor in processors]
        self._sample, self._generator = sample, generator

    def __call__(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """The next tokens int64 [B], given those so far [B, n] and logits [B, V], which may be written to."""
        for process in self._processors:
            logits = process(tokens, logits)
        if not self._sample:
            return logits.argmax(-1)
        return torch.multinomial(logits.softmax(-1), 1, generator=self._generator).squeeze(1)


def _quick(processor: Any) -> Process:
    if type(processor) is TopPLogitsWarper:
        return _TopP(processor)
    if type(processor) is MinPLogitsWarper and processor.min_tokens_to_keep == 1:
        return _MinP(processor)
    found: Process = processor
    return found


class _TopP:
    """As `TopPLogitsWarper`, from the likeliest tokens alone; where that leaves a doubt, the warper itself decides."""

    def __init__(self, warper: TopPLogitsWarper) -> None:
        self._warper = warper

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        count = min(_CANDIDATES, scores.shape[-1])
        best, _ = scores.topk(count)
        shares = (best - scores.logsumexp(-1, keepdim=True)).exp()
        better = shares.cumsum(-1) - shares  # the mass of all that are likelier than this one
        kept = better < self._warper.top_p
        kept[:, : self._warper.min_tokens_to_keep] = True
        size = kept.sum(-1, keepdim=True)
        last = best.gather(-1, size - 1)
        following = best.gather(-1, size.clamp(max=count - 1))
        close = (better - self._warper.top_p).abs() < _DOUBT
        if bool((size == count).any() or (last == following).any() or close.any()):
            decided: Tensor = self._warper(tokens, scores)
            return decided
        return scores.masked_fill(scores < last, self._warper.filter_value)


class _MinP:
    """As `MinPLogitsWarper` that keeps at least one token, which is never removed anyway: without looking for it."""

    def __init__(self, warper: MinPLogitsWarper) -> None:
        self._warper = warper

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        shares = scores.softmax(-1)
        least = self._warper.min_p * shares.amax(-1, keepdim=True)
        return scores.masked_fill(shares < least, self._warper.filter_value)


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
