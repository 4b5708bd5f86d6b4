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
def error_of_nearest(family: str, dtype: str = "int4_fullrange") -> float:
    quantized = woqfx.quantize(tiny_model(family), **{**REQUEST, "dtype": dtype})
    return float((logits(quantized) - logits(tiny_model(family))).square().mean())


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "algorithm"),
    [("int2", "teq"), ("int2", "awq+gptq"), ("int2", "best"), ("int3", "awq"), ("int3", "gptq")],
)
def test_fewer_bits(dtype, algorithm):
    model = tiny_model("llama")
    data = {"calibration": tokens(model), "samples": 24, "seq_len": 32}
    quantized = woqfx.quantize(model, algorithm=algorithm, **data, **{**REQUEST, "dtype": dtype})
    error = float((logits(quantized) - logits(tiny_model("llama"))).square().mean())
    assert error < error_of_nearest("llama", dtype)


@pytest.mark.slow
def test_each_expert_is_rounded_in_an_order_of_its_own(tmp_path):
    """Through a checkpoint and back; experts that saw too little have an order too, that of their inputs."""
    request = {**REQUEST, "algorithm": "gptq", "options": {"desc_act": True}, "samples": 24, "seq_len": 32}
    model = tiny_model("mixtral")
    woqfx.quantize(tiny_model("mixtral"), out=tmp_path / "out", calibration=tokens(model), **request)
    loaded = woqfx.load(tmp_path / "out")
    stacks = [weight.qtensor() for weight in packed_weights(loaded).values() if len(weight.shape) == 3]
    assert stacks
    for q in stacks:
        experts, k = q.shape[0], q.shape[-1]
        assert q.order.shape == (experts, k)
        assert len(q.order.unique(dim=0)) == experts
    error = float((logits(loaded) - logits(model)).square().mean())
    assert error < error_of_nearest("mixtral")


def test_experts_that_saw_too_few_tokens_fit_the_plan_with_orders(tmp_path):
    model = tiny_model("mixtral")
    request = {**REQUEST, "algorithm": "gptq", "options": {"desc_act": True}, "samples": 1, "seq_len": 32}
    woqfx.quantize(model, out=tmp_path / "out", calibration=tokens(model)[:1], **request)
    stacks = [w.qtensor() for w in packed_weights(woqfx.load(tmp_path / "out")).values() if len(w.shape) == 3]
    assert any(torch.equal(order, torch.arange(len(order), dtype=torch.int32)) for q in stacks for order in q.order)
