from __future__ import annotations

import pytest
import torch
from folders_of_models import digests, logits
from tiny_models import tiny_model

import woqfx
from woqfx.disk.checkpoint import Checkpoint
from woqfx.errors import WoqfxError
from woqfx.layers import packed_weights


def test_a_float_model_is_refused(tmp_path):
    with pytest.raises(WoqfxError, match=r"LlamaForCausalLM was not quantized by woqfx: use woqfx\.quantize"):
        woqfx.save(tiny_model("llama"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_request_and_the_errors_are_kept(tmp_path):
    rules = ["*.down_proj=dtype:int8", "*.up_proj=keep"]
    model = woqfx.quantize(tiny_model("llama"), dtype="nf4", rules=rules)
    woqfx.save(model, tmp_path / "out")
    checkpoint = Checkpoint(tmp_path / "out")
    assert checkpoint.request["rules"] == rules
    assert checkpoint.request["scheme"]["dtype"] == "nf4"
    assert checkpoint.errors.keys() == checkpoint.weights.keys()
    assert all(0 < error < 0.2 for error in checkpoint.errors.values())


def test_the_folder_that_it_was_loaded_from_may_be_gone(tmp_path):
    woqfx.quantize(tiny_model("llama"), out=tmp_path / "out")
    expected = digests(tmp_path / "out")
    model = woqfx.load(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    woqfx.save(model, tmp_path / "again")
    assert digests(tmp_path / "again") == expected


def test_weights_changed_after_quantizing_are_saved_as_they_are(tmp_path):
    model = woqfx.quantize(tiny_model("llama"))
    model.model.norm.weight.data.fill_(3.0)
    woqfx.save(model, tmp_path / "out")
    assert float(woqfx.load(tmp_path / "out").model.norm.weight[0]) == 3.0


class TestChangedModels:
    """A model is saved as it is now, whatever it was when it was quantized."""

    @staticmethod
    def again(model, folder):
        woqfx.save(model, folder)
        loaded = woqfx.load(folder)
        assert torch.equal(logits(loaded), logits(model))
        return loaded

    def test_untied(self, tmp_path):
        model = woqfx.quantize(tiny_model("llama", tie_word_embeddings=True))
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
        loaded = self.again(model, tmp_path / "out")
        assert loaded.config.tie_word_embeddings is False

    def test_resized(self, tmp_path):
        model = woqfx.quantize(tiny_model("llama"))
        model.resize_token_embeddings(140)
        assert self.again(model, tmp_path / "out").config.vocab_size == 140

    def test_cast(self, tmp_path):
        model = woqfx.quantize(tiny_model("llama")).to(torch.bfloat16)
        woqfx.save(model, tmp_path / "out")
        loaded = woqfx.load(tmp_path / "out")
        # .to() has rounded the rotary frequencies too, which no file holds
        torch.testing.assert_close(logits(loaded), logits(model), atol=0.1, rtol=0.1)
        assert loaded.config.dtype == torch.bfloat16
        assert {weight.dtype for weight in packed_weights(loaded).values()} == {torch.bfloat16}

    def test_generating_otherwise(self, tmp_path):
        model = woqfx.quantize(tiny_model("llama"))
        model.generation_config.max_new_tokens = 7
        assert self.again(model, tmp_path / "out").generation_config.max_new_tokens == 7
