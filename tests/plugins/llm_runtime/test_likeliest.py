"""The engine finds the likeliest token that PyTorch finds."""

from __future__ import annotations

import pytest
import torch
from engine_models import checkpoint_of
from tiny_models import tiny_model

from woqfx.disk.checkpoint import Checkpoint
from woqfx_llm_runtime.families import family_of

_core = pytest.importorskip("woqfx_llm_runtime._core")
lowering = pytest.importorskip("woqfx_llm_runtime.lowering")

VOCABULARY = 5003  # some blocks of the search, and a rest


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    changes = {"vocab_size": VOCABULARY, "num_hidden_layers": 1}
    folder = checkpoint_of(tmp_path_factory.mktemp("likeliest") / "out", "llama", changes)
    model = tiny_model("llama", **changes)
    return lowering.build(Checkpoint(folder), family_of(model)(model))


@pytest.mark.parametrize("rows", [0, 1, 8, 65])
def test_of_any_numbers(engine, rows):
    logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(rows))
    assert engine.likeliest(logits) == logits.argmax(-1).tolist() == engine.likeliest(logits.numpy())


def test_the_first_of_equals(engine):
    logits = torch.randint(0, 4, (64, VOCABULARY), generator=torch.Generator().manual_seed(1)).float()
    for row in range(64):
        logits[row, : row * 75] = 0
    assert engine.likeliest(logits) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("place", [0, 31, 1023, 1024, 4095, 4096, 5002])
def test_wherever_it_stands(engine, place):
    logits = torch.full((4, VOCABULARY), -torch.inf)
    logits[1, place] = 1.0
    logits[2, place] = torch.nan
    logits[3] = torch.inf
    logits[3, place] = torch.nan
    assert engine.likeliest(logits) == [0, place, place, place]


def test_rows_of_another_width_are_refused(engine):
    with pytest.raises(_core.Error, match="logits must be"):
        engine.likeliest(torch.zeros(1, 7))
