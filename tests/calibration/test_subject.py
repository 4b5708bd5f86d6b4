"""What a set of calibration data may ask of the model."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from tiny_models import save_tokenizer, tiny_model

from woqfx import CalibrationError, Subject
from woqfx.source import open_source


def test_the_digest_is_that_of_config_and_tensors(folder, source):
    live = open_source(tiny_model("llama", vocab_size=259))
    total = hashlib.sha256((json.dumps(live.config(), indent=1, sort_keys=True) + "\n").encode())
    for name in sorted(live.tensors):
        tensor = live.read(name)
        total.update(f"{name} torch.float32 {list(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert Subject(source).digest() == Subject(live).digest() == total.hexdigest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_any_float_type_has_a_digest(dtype):
    digests = {Subject(open_source(tiny_model("llama", seed=seed, dtype=dtype))).digest() for seed in (0, 0, 1)}
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("family", "vocabulary", "positions"),
    [("llama", 128, 64), ("gpt2", 128, 64), ("gemma3", 128, 64), ("t5", 128, None)],
)
def test_what_the_structure_tells(family, vocabulary, positions):
    subject = Subject(open_source(tiny_model(family)))
    assert (subject.vocabulary, subject.positions) == (vocabulary, positions)


def test_any_module_tells_nothing():
    subject = Subject(open_source(torch.nn.Sequential(torch.nn.Linear(64, 64))))
    assert (subject.vocabulary, subject.positions) == (None, None)


class TestTokenizer:
    def test_the_models_own(self, source):
        assert Subject(source).tokenizer.decode(Subject(source).tokenizer("hello").input_ids) == "hello"

    def test_that_of_a_live_model_comes_from_where_it_was_loaded(self, folder):
        from transformers import AutoModelForCausalLM

        live = AutoModelForCausalLM.from_pretrained(folder)
        assert (
            Subject(open_source(live)).tokenizer("hello").input_ids
            == Subject(open_source(folder)).tokenizer("hello").input_ids
        )

    def test_one_by_its_folder(self, tmp_path):
        save_tokenizer(tmp_path)
        subject = Subject(open_source(tiny_model("llama", vocab_size=259)), str(tmp_path))
        assert subject.tokenizer.decode(subject.tokenizer("hello").input_ids) == "hello"

    def test_one_that_is_given(self, source):
        given = Subject(source).tokenizer
        assert Subject(source, given).tokenizer is given

    def test_one_that_is_damaged(self, tmp_path):
        tiny_model("llama").save_pretrained(tmp_path)
        (tmp_path / "tokenizer.json").write_text("{")
        (tmp_path / "tokenizer_config.json").write_text("{}")
        with pytest.raises(CalibrationError, match=r"has no tokenizer that transformers can read: .*; pass tokenizer"):
            Subject(open_source(tmp_path)).tokenizer  # noqa: B018

    @pytest.mark.real_model
    @pytest.mark.slow
    def test_that_of_a_gguf_file(self, smollm2):
        tokenizer = Subject(open_source(smollm2)).tokenizer
        assert tokenizer.decode(tokenizer("hello world").input_ids) == "hello world"
