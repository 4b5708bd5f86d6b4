"""The benchmark of whole models: its worker, its report, and its place in the documentation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import publish
from benchmarks.make_t5 import T5
from benchmarks.peers.runtime_worker import Runner, Worker, tokens_of
from benchmarks.runtime_field import contenders
from benchmarks.runtime_report import _GOALS, markdown

ROOT = Path(__file__).parents[1]


class Counting(Runner):
    """Remembers what it was asked."""

    def __init__(self, path, threads, options):
        self.log = [(path, threads, options)]

    @property
    def nbytes(self):
        return 7

    def begin(self):
        self.log.append("begin")

    def read(self, tokens):
        self.log.append(len(tokens))
        return 5


def test_a_worker_reads_what_it_is_asked_to():
    worker = Worker(Counting, 2)
    assert worker.load("model", "here", {"kv": "fp16"})["nbytes"] == 7
    assert worker.prompt("model", 512)["seconds"] > 0
    assert worker.decode("model", 64, 3)["seconds"] > 0
    log = worker._models["model"].log
    assert log == [("here", 2, {"kv": "fp16"}), "begin", 512, "begin", 64, 1, 1, 1]
    with pytest.raises(NotImplementedError, match="Counting has no batches"):
        worker.batch("model", 8, 64, 3)
    log.clear()
    assert set(worker.long("model", 600, 2)) == {"prompt", "decode"}
    assert log == ["begin", 600, 1, 1]
    with pytest.raises(NotImplementedError, match="Counting has no batches of prompts"):
        worker.apart("model", 512, 64)
    worker.forget("model")
    assert not worker._models


def test_everyone_reads_the_same_tokens_of_any_vocabulary():
    assert len(set(tokens_of(512))) == 512
    assert min(tokens_of(512)) >= 3 and max(tokens_of(512)) < 32000


@pytest.mark.slow
def test_the_worker_of_woqfx_runs(tmp_path):
    pytest.importorskip("woqfx_llm_runtime._core", reason="woqfx was installed without its native engine")
    from tiny_models import tiny_model

    import woqfx

    model = tiny_model("llama", vocab_size=32000, max_position_embeddings=128)
    woqfx.quantize(model, dtype="int8", out=tmp_path / "out", progress="none")
    asked = [
        {"do": "load", "name": "m", "path": str(tmp_path / "out"), "options": {}},
        {"do": "prompt", "name": "m", "count": 32},
        {"do": "decode", "name": "m", "after": 8, "count": 4},
        {"do": "batch", "name": "m", "rows": 3, "after": 8, "count": 4},
        {"do": "apart", "name": "m", "count": 100, "length": 64},
        {"do": "prompt", "name": "m", "count": 512},
    ]
    command = [sys.executable, "-m", "benchmarks.peers.runtime_woqfx", "--threads=1"]
    lines = "".join(json.dumps(one) + "\n" for one in asked)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, input=lines, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    loaded = {"seconds", "nbytes", "bytes_per_token"}
    assert [set(answer) for answer in answers] == [loaded, *[{"seconds"}] * 4, {"error"}]
    assert 0 < answers[0]["bytes_per_token"] < answers[0]["nbytes"]


def test_the_worker_of_woqfx_runs_an_encoder_decoder(tmp_path):
    pytest.importorskip("woqfx_llm_runtime._core", reason="woqfx was installed without its native engine")
    from tiny_models import tiny_model

    import woqfx
    from benchmarks.peers.runtime_woqfx import Woqfx

    woqfx.quantize(tiny_model("t5"), dtype="int8", out=tmp_path / "out", progress="none")
    runner = Woqfx(str(tmp_path / "out"), 1, {})
    assert runner.prompt([3, 4, 5, 6]) > 0
    assert runner._engine.length(runner._slot) == 1
    assert runner.decode([3, 4, 5], 4) > 0
    assert runner._engine.length(runner._slot) == 5
    assert runner.rows(2, [3, 4, 5], 4) > 0


def test_the_t5_has_the_tensors_of_transformers_t5():
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**T5().config()))
    tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    theirs = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
    assert dict(T5().shapes()) == theirs


_TURNS = [0.5, 3.0, 1.0, 3.0, 2.0, 3.0]


def figure(model, bits, by, prompt, decode, batch=None, cached=None, bytes_per_token=None):
    who = {"model": model, "bits": bits, "by": by, "nbytes": 92e6, "bytes_per_token": bytes_per_token}
    loaded = {"bytes": 0.2, "load": 0.5, "cached": cached}
    speeds = {"prompt": prompt, "decode": decode, "batch": batch}
    # Beside a slow round and a quick one, of the machine and so of everyone; each second turn is another's.
    rounds = {what: [] if speed is None else [speed / 2, speed, speed * 2] for what, speed in speeds.items()}
    turns = {"decode": [decode * factor for factor in _TURNS], "bandwidth": [50e9 * factor for factor in _TURNS]}
    return {**who, **loaded, **speeds, "rounds": rounds | turns}


def result(**changes):
    figures = [
        figure("SmolLM2-135M", "int4_clip g32, int8", "woqfx", 3000.0, 340.0, 1100.0, 0.1, 90e6),
        figure("SmolLM2-135M", "Q4_0", "llama_cpp", 1400.0, 210.0, bytes_per_token=99e6),
        figure("1.1B llama", "int4_clip g32, int8", "woqfx", 500.0, 60.0, 200.0, 0.35, 0.7e9),
    ]
    machine = {"processor": "A CPU", "features": "avx2", "threads": 2, "read_bandwidth": 50e9, "others": 0.0}
    run = {"date": "2026-11-22", "rounds": 3, "turns": 2, "llama_cpp": "0.3.36", "figures": figures, "missing": {}}
    return machine | run | changes


def test_the_report_says_which_goals_were_missed():
    page = markdown(result())
    assert "| SmolLM2-135M | Q4_0 | llama_cpp | 92 MB | 1400 | 210.0 | 42% |  | 0.50 s | 2.5 |  |" in page
    assert "| **woqfx** | 92 MB | 3000 | 340.0 | 61% | 1100 | 0.50 s | 2.5 | 0.10 s |" in page
    verdict = (
        "decoding: at least 1.7 times llama_cpp Q4_0: **missed**, 1.62 times of the 2.65 that the bandwidth allows."
    )
    assert verdict in page
    assert "a prompt: at least 2 times llama_cpp Q4_0: met, 2.14 times." in page
    assert "8 together at least 3 times one: met, 3.24 times." in page
    assert "1.1B llama int4_clip g32, int8: decoding at 85% of the bandwidth: **missed**, 84%." in page
    assert "loaded from a pack cache in 0.3 s: **missed**, 0.35 s." in page
    assert "not quiet" not in page


def test_the_report_says_what_was_not_measured_and_that_others_were_at_work():
    page = markdown(result(others=0.4, missing={"1.1B llama bf16 transformers": "no memory"}))
    assert "**not quiet**: others used up to 40% of a processor" in page
    assert "Not measured: 1.1B llama bf16 transformers (no memory)." in page


def test_the_page_of_benchmarks_has_a_place_for_it():
    assert "<!-- runtime -->" in publish.DOCUMENT.read_text()


def test_every_goal_has_its_contenders():
    assert set(_GOALS) <= {(one.model, one.bits) for one in contenders()}
