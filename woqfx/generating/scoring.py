"""How likely a model finds a prompt's own tokens."""

from __future__ import annotations

from typing import Any

import torch

from woqfx.errors import SettingsError
from woqfx.generating.generator import TextGenerator
from woqfx.generating.request import Prompt, TokenScore

_ROWS = 256  # of logits that are worked on at a time: a row may have a quarter of a million


def score_prompt(generator: TextGenerator, prompt: Prompt, top: int) -> tuple[TokenScore, ...]:
    """A score for each token of `prompt` but the first, given those before it, with its `top` likeliest alternatives.

    Raises `SettingsError` for an encoder-decoder model, which predicts no prompts, and a prompt beyond the context.
    """
    model: Any = generator.model
    if model.config.is_encoder_decoder:
        raise SettingsError("the model is an encoder-decoder, which has no probabilities for its input: leave out echo")
    if generator.context_size is not None and len(prompt.tokens) > generator.context_size:
        raise SettingsError(f"the prompt has {len(prompt.tokens)} tokens, the model's context {generator.context_size}")
    ids = torch.tensor([prompt.tokens])
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    scores: list[TokenScore] = []
    for start in range(0, len(logits), _ROWS):
        rows = logits[start : start + _ROWS].float().log_softmax(-1)
        best = rows.topk(top, dim=-1)
        wanted = ids[0, 1 + start : 1 + start + len(rows)]
        own = rows.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
        for at, token in enumerate(wanted.tolist()):
            alternatives = zip(best.indices[at].tolist(), best.values[at].tolist(), strict=True)
            scores.append(TokenScore(token, float(own[at]), tuple(alternatives)))
    return tuple(scores)
