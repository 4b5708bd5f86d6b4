"""`woqfx bench FOLDER`: the speed of a whole model."""

from __future__ import annotations

import json
import sys
import types

import pytest
from tiny_models import tiny_model

import woqfx
import woqfx.speed
from woqfx.speed import Speed, take_turns


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    monkeypatch.setattr(woqfx.speed, "_ROUNDS", 1)


@pytest.mark.parametrize("backend", ["torch_cpu", "llm_runtime"])
def test_a_table_of_tokens_a_second(run, checkpoint, backend):
    if backend == "llm_runtime":
        pytest.importorskip("woqfx_llm_runtime._core", reason="woqfx was installed without its native engine")
    result = run("bench", checkpoint, "--backend", backend, "--prompt", 8, "--new", 4, "--threads", 1)
    assert result.exit_code == 0, result.stderr
    assert f"woqfx {backend}" in result.stdout and "tokens/s" in result.stdout


def test_json(run, checkpoint):
    found = json.loads(run("bench", checkpoint, "--prompt", 8, "--new", 4, "--threads", 1, "--json").stdout)
    assert (found["prompt_tokens"], found["new_tokens"], found["model"]) == (8, 4, str(checkpoint))
    assert found["tokens_per_second"]["woqfx torch_cpu"]["new"] > 0


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "t5"
    woqfx.quantize(tiny_model("t5"), dtype="int8", out=out, progress="none")
    return out


@pytest.mark.parametrize("backend", ["torch_cpu", "llm_runtime"])
def test_an_encoder_decoder_reads_its_source_and_then_its_own_tokens(run, encoder_decoder, backend):
    if backend == "llm_runtime":
        pytest.importorskip("woqfx_llm_runtime._core", reason="woqfx was installed without its native engine")
    asked = ["bench", encoder_decoder, "--backend", backend, "--prompt", 8, "--new", 4, "--threads", 1]
    found = run(*asked, "--json")
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["tokens_per_second"][f"woqfx {backend}"]["new"] > 0
    refused = run(*asked, "--against", "model.gguf")
    assert refused.exit_code == 1 and "is an encoder-decoder, and llama.cpp's package runs decoders" in refused.stderr


def test_more_tokens_than_the_model_takes_are_refused_before_any_is_read(run, checkpoint):
    result = run("bench", checkpoint, "--prompt", 60, "--new", 5)
    assert result.exit_code == 1
    assert "a prompt of 60 tokens and 5 new ones are beyond the 64 positions of LlamaForCausalLM" in result.stderr


def test_without_llama_cpp_it_says_how_to_get_it(run, checkpoint, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    result = run("bench", checkpoint, "--prompt", 8, "--new", 4, "--against", tmp_path / "model.gguf")
    assert result.exit_code == 1
    assert "pip install llama-cpp-python" in result.stderr


def test_llama_cpp_takes_turns(run, checkpoint, monkeypatch, tmp_path):
    seen = []

    class Llama:
        def __init__(self, path, **settings):
            seen.append((path, settings["n_ctx"] >= 12))

        def reset(self):
            seen.append("reset")

        def eval(self, tokens):
            seen.append(len(tokens))

        def sample(self, temp):
            return 5

    monkeypatch.setitem(sys.modules, "llama_cpp", types.SimpleNamespace(Llama=Llama))
    file = tmp_path / "model.gguf"
    missing = run("bench", checkpoint, "--prompt", 8, "--new", 4, "--against", file)
    assert missing.exit_code == 1 and "not a file" in missing.stderr
    file.write_bytes(b"")
    result = run("bench", checkpoint, "--prompt", 8, "--new", 4, "--threads", 1, "--against", file)
    assert result.exit_code == 0, result.stderr
    assert "llama.cpp" in result.stdout
    assert seen == [(str(file), True), *["reset", 8, 1, 1, 1, 1] * 2]


def test_medians_of_the_rounds_after_the_first(monkeypatch):
    monkeypatch.setattr(woqfx.speed, "_ROUNDS", 3)
    clock = iter([0.0, *(t for r in (9, 2, 4, 3) for t in (0.0, float(r), float(r + 2 * r)))][1:])
    monkeypatch.setattr(woqfx.speed.time, "perf_counter", lambda: next(clock))

    class Still:
        def begin(self):
            pass

        def read(self, tokens):
            return 1

    assert take_turns({"still": Still()}, 12, 6, 100) == {"still": Speed(prompt=4.0, new=1.0, rounds=3)}
