"""The divergence that tuning lessens: against PyTorch's own, and scipy's definition."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from tiny_models import tiny_inputs, tiny_model

from woqfx.errors import SourceError
from woqfx.tuning import divergence
from woqfx.tuning.divergence import Divergence, mean_divergence


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 40, 1 << 22], ids=["a-row-at-a-time", "some", "all"])
def test_value_and_gradient(chunk, monkeypatch):
    monkeypatch.setattr(divergence, "_CHUNK", chunk)
    logits, wanted = draw(7, 19).requires_grad_(), draw(7, 19, seed=1)
    found = mean_divergence(logits, wanted)
    p, q = softmax(wanted.numpy(), -1), softmax(logits.detach().numpy(), -1)
    assert float(found.detach()) == pytest.approx(float(np.mean(rel_entr(p, q).sum(-1))), rel=1e-5)
    (3 * found).backward()
    other = logits.detach().clone().requires_grad_()
    kl = torch.nn.functional.kl_div(
        other.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    (3 * kl).backward()
    assert torch.allclose(logits.grad, other.grad, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5"])
def test_a_model_is_not_far_from_itself(family):
    """gemma2 caps its logits; t5 is to give back what it is given."""
    model = tiny_model(family)
    tokens = tiny_inputs(model)["input_ids"]
    whole = Divergence(copy.deepcopy(model), model, torch.float32)
    with torch.no_grad():
        assert float(whole(tokens)) == pytest.approx(0, abs=1e-6)
        next(whole.model.parameters()).add_(0.1 * draw(1))
        assert float(whole(tokens)) > 1e-5


def test_a_copy_shares_the_original():
    """Threads run copies; the original is too large to be copied, and its parameters are no part of the whole."""
    model = tiny_model("llama")
    whole = Divergence(copy.deepcopy(model), model, torch.float32)
    assert copy.deepcopy(whole)._original.module is model
    assert len(list(whole.parameters())) == len(list(model.parameters()))


def test_bfloat16_is_near():
    model = tiny_model("llama")
    tokens, other = tiny_inputs(model)["input_ids"], tiny_model("llama", seed=1)
    with torch.no_grad():
        exact, rough = (float(Divergence(other, model, kind)(tokens)) for kind in (torch.float32, torch.bfloat16))
    assert rough == pytest.approx(exact, rel=0.05)
    assert rough != exact


def test_a_model_without_logits():
    with pytest.raises(SourceError, match="gives no logits"):
        Divergence(tiny_model("llama").model, tiny_model("llama"), torch.float32)(torch.ones(1, 4, dtype=torch.long))
