"""The model before quantization is the one that transformers loads."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_inputs, tiny_model
from transformers import AutoModelForCausalLM

from woqfx.original import load_original


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "mixtral"])
def test_a_folder_gives_the_model_that_was_saved(family, tmp_path):
    tiny_model(family).save_pretrained(tmp_path)
    wanted, found = AutoModelForCausalLM.from_pretrained(tmp_path), load_original(tmp_path)
    assert type(found) is type(wanted)
    assert not found.training
    inputs = tiny_inputs(wanted)
    with torch.no_grad():
        assert torch.equal(found(**inputs).logits, wanted(**inputs).logits)


def test_tied_weights_stay_tied(tmp_path):
    tiny_model("qwen2").save_pretrained(tmp_path)
    found = load_original(tmp_path)
    assert found.lm_head.weight is found.model.embed_tokens.weight
