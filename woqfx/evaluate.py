"""How well a language model predicts a text, and how far a quantized one is from its original.

A text is cut into windows of `context` tokens that do not overlap. In each, every token but the first is scored, given
those before it in the window: so n tokens in w windows give n - w scores. Sums are float64.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from woqfx.errors import WoqfxError

#: Told after each window how many tokens are behind.
Report = Callable[[int], None]

_CHUNK = 1 << 22  # logits that are worked on at a time


class EvaluationError(WoqfxError):
    """The model or the text cannot be scored."""


@dataclass(frozen=True)
class Perplexity:
    """`nll` is the sum over `tokens` scored tokens of -log p, in nats."""

    nll: float
    tokens: int

    @property
    def value(self) -> float:
        """exp(nll / tokens)."""
        mean = self.nll / self.tokens
        return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True)
class Comparison:
    """A model against a reference on the same tokens.

    `divergence` is the mean over tokens of KL(reference || model) in nats; `agreement` the share of places at which
    both find the same token the likeliest.
    """

    model: Perplexity
    reference: Perplexity
    divergence: float
    agreement: float


def perplexity(model: nn.Module, ids: Tensor, context: int, *, report: Report | None = None) -> Perplexity:
    """The perplexity of a causal language model on the tokens `ids` int64 [n].

    `model(input_ids=...)` returns `.logits` [1, n, V], as in transformers. Raises `EvaluationError`.
    """
    nll, scored = 0.0, 0
    for window, done in _windows(ids, context, model):
        nll += sum(_nll(part, wanted) for part, wanted in _parts(window, _logits(model, window)))
        scored += len(window) - 1
        if report:
            report(done)
    return Perplexity(nll, scored)


def compare(
    model: nn.Module, reference: nn.Module, ids: Tensor, context: int, *, report: Report | None = None
) -> Comparison:
    """Score both models on the tokens `ids` int64 [n], and how far `model` is from `reference`.

    Both must have one vocabulary. Raises `EvaluationError`.
    """
    nll = reference_nll = divergence = 0.0
    agreed = scored = 0
    for window, done in _windows(ids, context, model, reference):
        ours, theirs = _logits(model, window), _logits(reference, window)
        if ours.shape != theirs.shape:
            raise EvaluationError(
                f"the models have {ours.shape[-1]} and {theirs.shape[-1]} tokens: compare a model with its own original"
            )
        for (q, wanted), (p, _) in zip(_parts(window, ours), _parts(window, theirs), strict=True):
            nll += _nll(q, wanted)
            reference_nll += _nll(p, wanted)
            divergence += float((p.exp() * (p - q)).sum(dtype=torch.float64))
            agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
        scored += len(window) - 1
        if report:
            report(done)
    return Comparison(Perplexity(nll, scored), Perplexity(reference_nll, scored), divergence / scored, agreed / scored)


def python_topics() -> tuple[str, str]:
    """Real English prose that is on every machine: the topics of Python's own help, in alphabetical order.

    Returns the text and its name, which tells Python's versions apart: their texts differ.
    """
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text, f"the help topics of Python {platform.python_version()} ({digest})"


def _windows(ids: Tensor, context: int, *models: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """Each window of at least two tokens, and how many tokens are behind after it."""
    if context < 2:
        raise EvaluationError(f"context {context} scores nothing: a window needs at least 2 tokens")
    if len(ids) < 2:
        raise EvaluationError(f"the text has {len(ids)} tokens: at least 2 are needed")
    for model in models:
        _check(model, context)
    for start in range(0, len(ids) - 1, context):
        window = ids[start : start + context]
        yield window, start + len(window)


def _check(model: nn.Module, context: int) -> None:
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise EvaluationError(f"{type(model).__name__} is an encoder-decoder: perplexity is for causal language models")
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < context:
        raise EvaluationError(
            f"context {context} is beyond the {limit} positions of {type(model).__name__}: "
            f"ask for context={limit} (--context {limit}) or less"
        )


def _logits(model: nn.Module, window: Tensor) -> Tensor:
    """What the model says of each token but the first, [len(window) - 1, V]."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=window.unsqueeze(0), use_cache=False).logits
    return logits[0, :-1]


def _parts(window: Tensor, logits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Log-probabilities float32 [rows, V] and the tokens [rows] that came, a few rows at a time."""
    step = max(1, _CHUNK // logits.shape[-1])
    for start in range(0, len(logits), step):
        rows = logits[start : start + step].float()
        yield torch.log_softmax(rows, dim=-1), window[1 + start : 1 + start + len(rows)]


def _nll(log_probabilities: Tensor, wanted: Tensor) -> float:
    return -float(log_probabilities.gather(-1, wanted.unsqueeze(-1)).sum(dtype=torch.float64))
