"""Perplexity and divergence against transformers' own loss and against numpy in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from woqfx import evaluate
from woqfx.evaluate import EvaluationError, Perplexity, compare, perplexity, python_topics


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def other():
    return tiny_model("llama", seed=1)


def tokens(count, vocabulary=128, seed=0):
    return torch.randint(3, vocabulary, (count,), generator=torch.Generator().manual_seed(seed))


def log_softmax(model, window):
    """Log-probabilities float64 [n - 1, V], by numpy."""
    with torch.no_grad():
        logits = model(input_ids=window[None]).logits[0, :-1].double().numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def windows(ids, context):
    return [window for window in ids.split(context) if len(window) > 1]


@pytest.mark.parametrize("count", [16, 31, 33, 48], ids="{} tokens".format)
def test_perplexity_is_transformers_own_loss(llama, count):
    ids = tokens(count)
    nll = scored = 0
    for window in windows(ids, 16):
        with torch.no_grad():
            loss = llama(window[None], labels=window[None]).loss
        nll, scored = nll + float(loss) * (len(window) - 1), scored + len(window) - 1
    found = perplexity(llama, ids, 16)
    assert found.tokens == scored
    assert found.value == pytest.approx(math.exp(nll / scored), rel=1e-6)


def test_compare_is_numpys(llama, other):
    ids = tokens(40)
    divergence, agreed, nll, scored = 0.0, 0, 0.0, 0
    for window in windows(ids, 16):
        q, p = log_softmax(llama, window), log_softmax(other, window)
        divergence += (np.exp(p) * (p - q)).sum()
        agreed += (p.argmax(-1) == q.argmax(-1)).sum()
        nll -= q[np.arange(len(q)), window[1:].numpy()].sum()
        scored += len(q)
    found = compare(llama, other, ids, 16)
    assert found.model.tokens == found.reference.tokens == scored
    assert found.divergence == pytest.approx(divergence / scored, rel=1e-5)
    assert found.agreement == agreed / scored
    assert found.model.nll == pytest.approx(nll, rel=1e-6)
    assert found.reference == perplexity(other, ids, 16)


def test_a_model_is_its_own_equal(llama):
    found = compare(llama, llama, tokens(20), 10)
    assert (found.divergence, found.agreement) == (0.0, 1.0)


def test_a_last_window_of_one_token_scores_nothing(llama):
    assert perplexity(llama, tokens(33), 16) == perplexity(llama, tokens(33)[:32], 16)


def test_windows_do_not_see_each_other(llama):
    ids = tokens(32)
    both = perplexity(llama, ids, 16)
    halves = [perplexity(llama, half, 16) for half in (ids[:16], ids[16:])]
    assert both.nll == pytest.approx(sum(half.nll for half in halves), rel=1e-12)


def test_chunks_change_nothing(llama, other, monkeypatch):
    ids = tokens(40)
    whole = compare(llama, other, ids, 20)
    monkeypatch.setattr(evaluate, "_CHUNK", 300)  # two rows of the vocabulary at a time
    parts = compare(llama, other, ids, 20)
    assert parts.divergence == pytest.approx(whole.divergence, rel=1e-12)
    assert parts.model.nll == pytest.approx(whole.model.nll, rel=1e-12)
    assert parts.agreement == whole.agreement


def test_progress_is_told_after_each_window(llama):
    heard = []
    perplexity(llama, tokens(33), 16, report=heard.append)
    assert heard == [16, 32]


def test_half_precision_logits_are_summed_in_full(llama):
    class Half(nn.Module):
        config = SimpleNamespace()

        def forward(self, input_ids, use_cache):
            logits = llama(input_ids=input_ids, use_cache=use_cache).logits
            return SimpleNamespace(logits=logits.to(torch.bfloat16))

    found, exact = perplexity(Half(), tokens(48), 16), perplexity(llama, tokens(48), 16)
    assert found.value == pytest.approx(exact.value, rel=0.02)
    assert found.value != exact.value


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    class Uniform(nn.Module):
        def forward(self, input_ids, use_cache):
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 50))

    assert perplexity(Uniform(), tokens(20, 50), 10).value == pytest.approx(50)


def test_a_hopeless_model_is_infinite_and_no_error():
    assert Perplexity(1e6, 10).value == math.inf


@pytest.mark.parametrize(
    ("count", "context", "message"),
    [(20, 1, "context 1 scores nothing"), (1, 10, "has 1 tokens"), (20, 65, "beyond the 64 positions")],
    ids=["context", "text", "positions"],
)
def test_what_cannot_be_scored(llama, count, context, message):
    with pytest.raises(EvaluationError, match=message):
        perplexity(llama, tokens(count), context)


def test_an_encoder_decoder_is_refused():
    with pytest.raises(EvaluationError, match="encoder-decoder"):
        perplexity(tiny_model("t5"), tokens(20), 10)


def test_another_vocabulary_is_refused(llama):
    with pytest.raises(EvaluationError, match="128 and 96 tokens"):
        compare(llama, tiny_model("llama", vocab_size=96), tokens(20, 90), 10)


def test_the_topics_are_prose_and_fixed():
    (text, name), again = python_topics(), python_topics()
    assert (text, name) == again
    assert len(text) > 100_000
    assert text.count(" the ") > 1000
