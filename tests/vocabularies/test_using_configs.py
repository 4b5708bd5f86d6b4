"""A configuration in use: beside arguments, and from the original to a checkpoint."""

from __future__ import annotations

import pytest
import torch
import transformers

import woqfx
from woqfx.errors import ConfigError


class TestBesideArguments:
    def test_rules_of_both_hold(self, model):
        config = transformers.AwqConfig(modules_to_not_convert=["o_proj"])
        plan = woqfx.plan(model, config=config, rules=["*.down_proj=int8"])
        kinds = {layer.layer.name: layer.scheme and layer.scheme.dtype for layer in plan.layers}
        assert kinds["model.layers.0.self_attn.o_proj"] is None
        assert kinds["model.layers.0.mlp.down_proj"] == "int8"

    def test_what_a_configuration_leaves_open_can_be_given(self, model):
        plan = woqfx.plan(model, config=transformers.AwqConfig(), samples=5, compute_dtype="int8")
        assert plan.request.calibration.samples == 5
        assert plan.request.scheme.compute_dtype == "int8"

    def test_what_both_say_is_refused(self, model):
        with pytest.raises(
            ConfigError, match="dtype='nf4' is given beside the configuration, which asks for 'int4_clip'"
        ):
            woqfx.plan(model, config=transformers.AwqConfig(), dtype="nf4")


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        transformers.GPTQConfig(bits=4, dataset=["a small text to calibrate on"] * 3, desc_act=True, group_size=32),
        transformers.AwqConfig(group_size=32, dataset=["a small text to calibrate on"] * 3),
        transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=1.0),
    ],
    ids=["gptq", "awq", "4bit", "8bit"],
)
def test_a_whole_run(model, config, tmp_path):
    made = woqfx.quantize(model, config=config, out=tmp_path / "out")
    again = woqfx.load(tmp_path / "out")
    inputs = torch.arange(3, 12)[None]
    assert torch.equal(made(inputs).logits, again(inputs).logits)
    dense = transformers.AutoModelForCausalLM.from_pretrained(model)(inputs).logits
    assert (made(inputs).logits - dense).norm() / dense.norm() < 0.3
