"""Which token comes next: one answer's own draw, that nothing beside it can change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from woqfx.generating.settings import Settings


@dataclass(frozen=True)
class Choice:
    """A token; with log-probabilities if they were asked for: its own, and (token, its own) of the likeliest."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Guide(Protocol):
    """What a constraint does to one answer."""

    def allowed(self, size: int) -> torch.Tensor:
        """Which tokens may come next, [size] of bool; never none."""
        ...

    def take(self, token: int) -> None:
        """The token that came."""
        ...


@dataclass(frozen=True)
class Defaults:
    """What a model's generation config says about drawing: it counts where the caller says nothing."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def of(cls, config: Any) -> Defaults:
        """Those of a `GenerationConfig`: one that does not sample has no say in how."""
        if not config.do_sample:
            return cls(repetition_penalty=config.repetition_penalty)
        temperature = 1.0 if config.temperature is None else float(config.temperature)
        return cls(temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty)


class Sampler:
    """Chooses the tokens of one answer from their scores; the arithmetic is that of transformers' `generate`."""

    def __init__(self, settings: Settings, defaults: Defaults, guide: Guide | None = None) -> None:
        self._logprobs = settings.logprobs
        self._guide = guide
        self._frequency, self._presence = settings.frequency_penalty, settings.presence_penalty
        self._counts: Counter[int] = Counter()
        penalty = _either(settings.repetition_penalty, defaults.repetition_penalty)
        self._penalty = RepetitionPenaltyLogitsProcessor(float(penalty)) if penalty not in (None, 1) else None
        temperature = _either(settings.temperature, defaults.temperature)
        self._words: dict[str, Any] = {"do_sample": bool(temperature), "repetition_penalty": float(penalty or 1.0)}
        self._generator: torch.Generator | None = None
        self._warpers: list[Any] = []
        if not temperature:
            return
        self._generator = torch.Generator()
        if settings.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(settings.seed)
        top_k, top_p, min_p = (
            _either(settings.top_k, defaults.top_k),
            _either(settings.top_p, defaults.top_p),
            _either(settings.min_p, defaults.min_p),
        )
        self._words |= {
            "temperature": float(temperature),
            "top_k": top_k or 0,
            "min_p": float(min_p) if min_p else None,
        }
        self._words["top_p"] = 1.0 if top_p is None else float(top_p)
        if temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_k:
            self._warpers.append(TopKLogitsWarper(top_k))
        if top_p is not None and top_p < 1:
            self._warpers.append(TopPLogitsWarper(float(top_p)))
        if min_p:
            self._warpers.append(MinPLogitsWarper(float(min_p)))

    @property
    def seed(self) -> int:
        """What its random numbers begin with; 0 if it draws none."""
        return 0 if self._generator is None else self._generator.initial_seed()

    @property
    def in_words(self) -> dict[str, Any] | None:
        """Arguments of transformers' `generate` that choose the same tokens; None if there are none."""
        more = self._guide is not None or self._logprobs is not None or self._frequency or self._presence
        return None if more else self._words

    def choose(self, scores: torch.Tensor, before: Sequence[int]) -> Choice:
        """The next token from `scores`, the logits [vocabulary] as float32, after the tokens `before`."""
        row = scores[None]
        if self._penalty is not None and before:
            row = self._penalty(torch.tensor([list(before)]), row.clone())
        if (self._frequency or self._presence) and self._counts:
            row = row.clone()
            row[0, list(self._counts)] -= self._presence + self._frequency * torch.tensor([*self._counts.values()])
        if self._guide is not None:
            row = row.masked_fill(~self._guide.allowed(row.shape[-1]), float("-inf"))
        if self._generator is None:
            token = int(row.argmax())
        else:
            for warper in self._warpers:
                row = warper(None, row)
            token = int(torch.multinomial(row.softmax(-1), 1, generator=self._generator))
        self._counts[token] += 1
        if self._guide is not None:
            self._guide.take(token)
        if self._logprobs is None:
            return Choice(token)
        logprobs = scores.log_softmax(-1)
        values, tokens = logprobs.topk(self._logprobs)
        return Choice(token, float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))


def _either(value: Any, default: Any) -> Any:
    return default if value is None else value
