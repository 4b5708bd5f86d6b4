"""Checkpoints whose numbers were tampered with: an error of woqfx's own, soon, and never a crash."""

from __future__ import annotations

import hashlib
import json
import shutil
import time

import pytest
import torch
from engine_models import checkpoint_of

import woqfx

pytest.importorskip("woqfx_llm_runtime._core", reason="woqfx was installed without its native engine")

HUGE, WILD = 1 << 40, 1 << 62
CHANGES = {
    "no heads": {"num_attention_heads": 0},
    "heads that are text": {"num_attention_heads": "4"},
    "odd heads": {"num_attention_heads": 3},
    "more kv heads": {"num_key_value_heads": 8},
    "huge heads": {"head_dim": HUGE},
    "narrow heads": {"head_dim": 2},
    "more layers": {"num_hidden_layers": 3},
    "fewer layers": {"num_hidden_layers": 1},
    "a million layers": {"num_hidden_layers": 1_000_000},
    "a huge vocabulary": {"vocab_size": HUGE},
    "a small vocabulary": {"vocab_size": 5},
    "another width": {"hidden_size": 128},
    "a huge MLP": {"intermediate_size": HUGE},
    "no epsilon": {"rms_norm_eps": None},
    "an epsilon of text": {"rms_norm_eps": "small"},
    "a rope of nobody": {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
    "a rope to the power of 0": {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}},
    "a dynamic rope of text": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": "x"}},
    "a longrope without factors": {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
    "negative context": {"max_position_embeddings": -5},
    "an activation of nobody": {"hidden_act": "mish"},
    "a huge context": {"max_position_embeddings": HUGE},
}


CHANGES_OF_T5 = {
    "no heads": {"num_heads": 0},
    "huge heads": {"d_kv": HUGE},
    "wide heads": {"d_kv": 1 << 15},
    "a million layers": {"num_layers": 1_000_000},
    "more decoder layers": {"num_decoder_layers": 3},
    "a million decoder layers": {"num_decoder_layers": 1_000_000},
    "no buckets": {"relative_attention_num_buckets": 0},
    "odd buckets": {"relative_attention_num_buckets": 31},
    "huge buckets": {"relative_attention_num_buckets": 1 << 20},
    "no distance": {"relative_attention_max_distance": 0},
    "a short distance": {"relative_attention_max_distance": 3},
    "a huge distance": {"relative_attention_max_distance": 1 << 30},
    "a distance of text": {"relative_attention_max_distance": "far"},
    "an activation of nobody": {"dense_act_fn": "mish"},
    "a gate that is not there": {"is_gated_act": True},
    "no epsilon": {"layer_norm_epsilon": None},
    "another width": {"d_model": 128},
    "a head that is not there": {"tie_word_embeddings": False, "vocab_size": 130},
}


@pytest.fixture(scope="module")
def good_t5(tmp_path_factory):
    return checkpoint_of(tmp_path_factory.mktemp("good") / "t5", "t5", rules=["re:^(?!.*DenseReluDense).*=keep"])


@pytest.mark.parametrize("name", CHANGES_OF_T5)
def test_numbers_of_a_config_with_an_encoder(good_t5, tmp_path, name):
    start = time.process_time()
    with pytest.raises(woqfx.WoqfxError):
        woqfx.load(forged(good_t5, tmp_path / "bad", "config.json", CHANGES_OF_T5[name]), backend="llm_runtime")
    assert time.process_time() - start < 30


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Most of it kept as it was, so that few shapes are known before tensors are read."""
    return checkpoint_of(tmp_path_factory.mktemp("good") / "out", "llama", rules=["re:^(?!.*down_proj).*=keep"])


def forged(good, folder, file, changes):
    """The same with these changes to a file of JSON, of which the manifest knows."""
    shutil.copytree(good, folder)
    path, manifest = folder / file, folder / "woqfx.json"
    data = json.dumps(json.loads(path.read_text()) | changes).encode()
    path.write_bytes(data)
    listed = json.loads(manifest.read_text())
    listed["files"][file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(listed))
    return folder


@pytest.mark.parametrize("name", CHANGES)
def test_numbers_of_the_config(good, tmp_path, name):
    start = time.process_time()
    with pytest.raises(woqfx.WoqfxError):
        woqfx.load(forged(good, tmp_path / "bad", "config.json", CHANGES[name]), backend="llm_runtime")
    assert time.process_time() - start < 30


def test_a_large_context_takes_no_memory_until_it_is_used(good, tmp_path):
    context = 1 << 20
    folder = forged(good, tmp_path / "bad", "config.json", {"max_position_embeddings": context})
    model = woqfx.load(folder, backend="llm_runtime")
    answer = model.submit(torch.tensor([5, 6, 7]), max_new_tokens=context - 3, do_sample=False, eos_token_id=None)
    assert [next(answer) for _ in range(3)]
    answer.cancel()


@pytest.mark.parametrize(
    "settings",
    [{"max_length": WILD}, {"max_new_tokens": WILD}, {"eos_token_id": WILD, "max_new_tokens": 3}],
    ids=["length", "new tokens", "end"],
)
def test_numbers_of_the_generation_config(good, tmp_path, settings):
    model = woqfx.load(forged(good, tmp_path / "bad", "generation_config.json", settings), backend="llm_runtime")
    try:
        made = model.generate(torch.tensor([[5, 6, 7]]), do_sample=False)
        assert made.shape[1] <= 64
    except (woqfx.WoqfxError, ValueError, RuntimeError, MemoryError) as error:
        assert str(error)


def test_weights_that_are_no_numbers_give_no_numbers_and_no_crash(tmp_path):
    from tiny_models import tiny_model

    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    model = woqfx.quantize(model, dtype="int8", backend="llm_runtime", progress="none")
    assert model(input_ids=torch.tensor([[5, 6]])).logits.isnan().all()
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False).shape == (1, 4)
    with pytest.raises(RuntimeError, match="probability"):
        model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=True)
    assert not model._scheduler._requests
