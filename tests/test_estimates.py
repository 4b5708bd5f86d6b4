"""What a run that looks at data is said to take."""

from __future__ import annotations

import torch
from tiny_models import tiny_model

import woqfx


def planned_memory(model: torch.nn.Module, algorithm: str = "teq", samples: int = 4, **options: object) -> int:
    tokens = torch.randint(3, 128, (samples, 24), generator=torch.Generator().manual_seed(0))
    data = {"calibration": tokens, "samples": samples, "seq_len": 24}
    return woqfx.plan(model, algorithm=algorithm, options=options, dtype="nf4", **data).memory


def test_a_pass_back_through_a_block_holds_what_its_products_take_and_give(monkeypatch):
    """Each of 7 products of a llama's block, for all 64 x 24 tokens, since a batch has room for more."""
    monkeypatch.setattr("woqfx.planning._process_bytes", lambda: 0)
    model = tiny_model("llama", hidden_size=128)
    linears = [layer for layer in model.model.layers[0].modules() if isinstance(layer, torch.nn.Linear)]
    moments = sum(4 * width**2 for width in {layer.in_features for layer in linears})  # the larger of both counts
    with_them, without = (planned_memory(model, "gptq", 64, token_weights=weighs) for weighs in (True, False))
    assert with_them - without == 4 * 64 * 24 * sum(sum(layer.weight.shape) for layer in linears) - moments


def test_an_algorithm_that_looks_at_the_whole_model_takes_more_for_each_block(monkeypatch):
    """In float32: the model itself and four copies of its blocks, and its inputs' moments beside them.

    Else one block is there at a time; of models as small as these, two copies are on their way through the engine.
    """
    monkeypatch.setattr("woqfx.planning._process_bytes", lambda: 0)  # it grows by what other tests leave behind
    growth = {}
    for objective in ("block", "lm"):
        small, large = (tiny_model("llama", num_hidden_layers=layers, hidden_size=256) for layers in (2, 12))
        block = 4 * sum(parameter.numel() for parameter in small.model.layers[0].parameters())
        more = planned_memory(large, objective=objective) - planned_memory(small, objective=objective)
        growth[objective] = more / (10 * block)
    assert 5 < growth["lm"] < 6
    assert 1.9 < growth["block"] < 2.1


def test_the_original_beside_the_quantized_takes_one_boundary_more(monkeypatch):
    monkeypatch.setattr("woqfx.planning._process_bytes", lambda: 0)
    model = tiny_model("llama", hidden_size=128)
    widest = max(layer.in_features for layer in model.model.layers[0].modules() if isinstance(layer, torch.nn.Linear))
    more = planned_memory(model, "best", 64) - planned_memory(model, "awq+gptq", 64)
    assert more == 4 * 64 * 24 * widest
