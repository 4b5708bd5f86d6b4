"""`woqfx eval`: the numbers of `woqfx.evaluate`, and on what they were measured."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import woqfx
from woqfx.evaluate import compare, python_topics


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("It was the best of times, it was the worst of times. " * 4)
    return path


def test_an_original_alone_against_transformers_own_loss(run, model_folder, text):
    flags = ["--text", text, "--tokens", 64, "--context", 64, "--json"]
    found = json.loads(run("eval", model_folder, *flags).stdout)
    ids = AutoTokenizer.from_pretrained(model_folder)(text.read_text(), return_tensors="pt").input_ids[:, :64]
    with torch.no_grad():
        loss = AutoModelForCausalLM.from_pretrained(model_folder)(ids, labels=ids).loss
    assert found["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-5)
    assert (found["tokens"], found["scored"]) == (64, 63)


def test_against_the_original(run, model_folder, checkpoint, text):
    flags = ["--text", text, "--tokens", 100, "--context", 40]
    found = json.loads(run("eval", checkpoint, "--against", model_folder, *flags, "--json").stdout)
    ids = AutoTokenizer.from_pretrained(model_folder)(text.read_text(), return_tensors="pt").input_ids[0, :100]
    wanted = compare(woqfx.load(checkpoint), AutoModelForCausalLM.from_pretrained(model_folder), ids, 40)
    assert found["kl"] == pytest.approx(wanted.divergence, rel=1e-6)
    assert found["original_perplexity"] == pytest.approx(wanted.reference.value, rel=1e-6)
    assert found["agreement"] == wanted.agreement
    assert found["scored"] == 97
    shown = run("eval", checkpoint, "--against", model_folder, *flags).stdout
    assert f"{found['perplexity']:.3f}" in shown
    assert f"{found['kl']:.5f} nats per token" in shown
    assert f"97 of 100 tokens of {text}, in windows of 40" in shown


def test_a_model_is_no_distance_from_itself(run, model_folder):
    found = json.loads(
        run("eval", model_folder, "--against", model_folder, "--tokens", 50, "--context", 50, "--json").stdout
    )
    assert found["kl"] == 0
    assert found["agreement"] == 1
    assert found["perplexity"] == found["original_perplexity"]


def test_the_default_text_is_named(run, checkpoint):
    found = json.loads(run("eval", checkpoint, "--tokens", 40, "--context", 40, "--json").stdout)
    assert found["text"] == python_topics()[1]


@pytest.mark.parametrize(
    ("flags", "message", "code"),
    [(["--context", 65], "64 positions", 1), (["--backend", "tpu"], "there is no backend 'tpu'", 2)],
    ids=["context", "backend"],
)
def test_what_cannot_be(run, checkpoint, flags, message, code):
    result = run("eval", checkpoint, "--tokens", 80, *flags)
    assert result.exit_code == code
    assert message in result.stderr


def test_a_text_that_is_not_utf_8(run, checkpoint, tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("déjà vu".encode("latin-1"))
    result = run("eval", checkpoint, "--text", path)
    assert result.exit_code == 1
    assert "not UTF-8" in result.stderr
