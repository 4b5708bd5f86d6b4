from __future__ import annotations

import pytest
from folders_of_models import digests
from tiny_models import tiny_model

import woqfx
from woqfx.checkpoint import Checkpoint
from woqfx.errors import WoqfxError


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
