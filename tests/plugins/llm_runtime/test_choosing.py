"""Tokens are chosen as transformers chooses them."""

from __future__ import annotations

import pytest
import torch
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from woqfx_llm_runtime.requests.choosing import Choose, look_up


def transformers_choice(processors, tokens, logits, *, sample):
    """As `GenerationMixin._sample` does it."""
    scores = LogitsProcessorList(processors)(tokens, logits.clone())
    return torch.multinomial(scores.softmax(-1), 1).squeeze(1) if sample else scores.argmax(-1)


SETTINGS = {
    "greedy": [],
    "penalty": [RepetitionPenaltyLogitsProcessor(1.3)],
    "temperature": [TemperatureLogitsWarper(0.7)],
    "top-k": [TopKLogitsWarper(50)],
    "top-p": [TopPLogitsWarper(0.9)],
    "tiny top-p": [TopPLogitsWarper(0.01)],
    "whole top-p": [TopPLogitsWarper(0.9999)],
    "top-p, two kept": [TopPLogitsWarper(0.3, min_tokens_to_keep=2)],
    "min-p": [MinPLogitsWarper(0.05)],
    "all": [
        RepetitionPenaltyLogitsProcessor(1.1),
        TemperatureLogitsWarper(0.8),
        TopKLogitsWarper(40),
        TopPLogitsWarper(0.95),
        MinPLogitsWarper(0.02),
    ],
}


@pytest.mark.parametrize("spread", [0.1, 2.0, 8.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_tokens_as_transformers(name, spread):
    generator = torch.Generator().manual_seed(5)
    for seed in range(8):
        logits = torch.randn(3, 3000, generator=generator) * spread
        tokens = torch.randint(0, 3000, (3, 12), generator=generator)
        for sample in (False, True):
            torch.manual_seed(seed)
            wanted = transformers_choice(SETTINGS[name], tokens, logits, sample=sample)
            torch.manual_seed(seed)
            assert torch.equal(Choose(SETTINGS[name], sample=sample)(tokens, logits.clone()), wanted)


def test_a_generator_of_its_own_draws_what_the_global_one_draws_after_its_seed():
    logits, tokens = torch.randn(1, 500), torch.zeros(1, 1, dtype=torch.int64)
    torch.manual_seed(11)
    wanted = [transformers_choice([], tokens, logits, sample=True).item() for _ in range(5)]
    choose = Choose([], sample=True, generator=torch.Generator().manual_seed(11))
    assert [choose(tokens, logits).item() for _ in range(5)] == wanted


@pytest.mark.parametrize(
    ("tokens", "guess"),
    [
        ([5, 6, 7, 8, 5, 6], [7, 8, 5]),
        ([1, 2, 9, 1, 2, 3, 1, 2], [3, 1, 2]),
        ([4, 4, 4], [4]),
        ([1, 2, 3], []),
        ([7], []),
    ],
    ids=["continued", "the latest place", "repeated", "nothing alike", "one token"],
)
def test_look_up(tokens, guess):
    assert look_up(torch.tensor(tokens), count=3, longest=2).tolist() == guess
