"""`woqfx tune`: what it prints, and what it says when it cannot."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from tiny_models import tiny_model

import woqfx
from woqfx.cli import main
from woqfx.tuning import tune as tuning
from woqfx.tuning.tune import Tuning


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    model = tiny_model("llama")
    model.save_pretrained(folder / "original")
    woqfx.quantize(model, out=folder / "out", group_size=16, progress="none")
    return folder


def run(*arguments: object):
    return CliRunner().invoke(main, ["tune", *map(str, arguments)])


@pytest.fixture
def found(monkeypatch):
    """Tuning is tested elsewhere; here it finds what is put in, and keeps what it was asked."""
    asked: dict[str, object] = {}

    def pretend(*places: object, **given: object) -> Tuning:
        asked.update(given, places=places)
        if given["report"] is not None:
            given["report"](1, 2)
        return asked["result"]

    monkeypatch.setattr(tuning, "tune", pretend)
    asked["result"] = Tuning(0.06, 0.05, 28, 4)
    return asked


def test_it_says_memory_first_and_the_change_last(paths, found):
    done = run(paths / "out", "--original", paths / "original", "--out", paths / "tuned", "--samples", 32)
    assert done.exit_code == 0, done.output
    first, *others = done.stdout.splitlines()
    assert first.startswith("memory  about ")
    assert any("0.06000 to 0.05000 nats per token" in line and "on 4 sequences" in line for line in others)
    assert found["places"] == (paths / "out", str(paths / "original"), paths / "tuned")
    assert (found["data"].samples, found["data"].data) == (32, "python-docs")
    assert found["options"] == woqfx.TuningOptions()


def test_flags_become_options(paths, found):
    given = ["--passes", 1, "--rate", 0.01, "--products", "bf16", "--seed", 3, "--overwrite", "--quiet"]
    done = run(paths / "out", "--original", paths / "original", "--out", paths / "tuned", *given)
    assert (done.exit_code, done.output) == (0, "")
    assert found["options"] == woqfx.TuningOptions(passes=1, rate=0.01, products="bf16", seed=3)
    assert found["overwrite"] is True


def test_no_better(paths, found):
    found["result"] = Tuning(0.05, 0.06, 28, 4)
    done = run(paths / "out", "--original", paths / "original", "--out", paths / "tuned")
    assert done.exit_code == 1
    assert "0.05000 to 0.06000" in done.stderr
    assert "nothing was written" in done.stderr


def test_a_real_one(paths):
    rows = torch.randint(3, 100, (16, 24), generator=torch.Generator().manual_seed(0))
    (paths / "rows.jsonl").write_text("".join(f'{{"input_ids": {row.tolist()}}}\n' for row in rows))
    data = ["--calibration", paths / "rows.jsonl", "--samples", 16, "--seq-len", 24]
    done = run(paths / "out", "--original", paths / "original", "--out", paths / "real", "--rate", 0.001, *data)
    assert done.exit_code == 0, done.output
    assert (paths / "real" / "woqfx.json").exists()


def test_another_model(paths, tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "other")
    done = run(paths / "out", "--original", tmp_path / "other", "--out", tmp_path / "tuned")
    assert done.exit_code == 2
    assert "give the model that" in done.stderr
