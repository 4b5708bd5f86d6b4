"""Every family of models through every algorithm that looks at data: nearer to the float model than rounding alone."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tiny_models import FAMILIES, tiny_model

import woqfx
from woqfx.layers import packed_weights

ALGORITHMS = {"gptq": {}, "awq+gptq": {}, "best": {"iterations": 4}}
REQUEST = {"dtype": "int4_fullrange", "group_size": 16}


def tokens(model: torch.nn.Module) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return list(torch.randint(3, model.config.vocab_size, (24, 32), generator=draw))


def logits(model: torch.nn.Module) -> torch.Tensor:
    """On the calibration data themselves."""
    batch = torch.stack(tokens(model))
    more = {"decoder_input_ids": batch} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=batch, **more).logits


@cache
def error_of_nearest(family: str) -> float:
    return float((logits(woqfx.quantize(tiny_model(family), **REQUEST)) - logits(tiny_model(family))).square().mean())


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_nearer_than_the_nearest(family, algorithm):
    model = tiny_model(family)
    data = {"calibration": tokens(model), "samples": 24, "seq_len": 32}
    quantized = woqfx.quantize(model, algorithm=algorithm, options=ALGORITHMS[algorithm], **data, **REQUEST)
    assert packed_weights(quantized)
    error = float((logits(quantized) - logits(tiny_model(family))).square().mean())
    assert error < error_of_nearest(family)
