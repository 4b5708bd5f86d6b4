"""The benchmarks' own arithmetic, on made-up numbers; and each benchmark runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
# The benchmarks are part of the repository, not of the package: they are found from its root.
sys.path.insert(0, str(ROOT))

from benchmarks import machine, process  # noqa: E402
from benchmarks import run as bench  # noqa: E402
from benchmarks.compare import (  # noqa: E402
    Comparison,
    Measurement,
    better,
    compare,
    missing,
    read_baseline,
    read_report,
    write_baseline,
)
from benchmarks.make_model import Llama, make_model  # noqa: E402
from benchmarks.publish import embed  # noqa: E402
from benchmarks.report import markdown  # noqa: E402
from woqfx.source import open_source  # noqa: E402

TINY = Llama(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=96,
    max_position_embeddings=64,
)


def measured(name: str, share: float, seconds: float = 1.0) -> Measurement:
    return Measurement(name, seconds, share, "bandwidth")


def entry(name: str, median: float, work: int, limit: float) -> dict[str, Any]:
    extra = {"work": work, "limit": limit, "kind": "bandwidth"}
    return {"fullname": name, "stats": {"median": median, "min": median / 2}, "extra_info": extra}


# -- shares and comparisons ------------------------------------------------------------------------


def test_a_share_is_work_over_median_time_over_the_limit() -> None:
    # 3 GB in half a second is 6 GB/s, of 24 GB/s a quarter.
    found = read_report({"benchmarks": [entry("benchmarks/test_a.py::test_x[nf4]", 0.5, 3_000_000_000, 24e9)]})
    assert found == {"test_a::test_x[nf4]": Measurement("test_a::test_x[nf4]", 0.5, 0.25, "bandwidth")}


def test_a_slower_machine_gives_the_same_share() -> None:
    fast = read_report({"benchmarks": [entry("benchmarks/test_a.py::test_x", 0.1, 10**9, 40e9)]})
    slow = read_report({"benchmarks": [entry("benchmarks/test_a.py::test_x", 0.4, 10**9, 10e9)]})
    assert fast["test_a::test_x"].share == pytest.approx(slow["test_a::test_x"].share)


@pytest.mark.parametrize(
    ("share", "slower"),
    [(0.400, False), (0.344, False), (0.336, True), (0.1, True), (0.9, False)],
    ids=["same", "14% less", "16% less", "a quarter", "faster"],
)
def test_slower_means_more_than_15_percent_below_the_baseline(share: float, slower: bool) -> None:
    assert Comparison(measured("a", share), 0.4).slower is slower


def test_a_new_benchmark_is_not_slower() -> None:
    (new,) = compare({"a": measured("a", 0.1)}, {"b": 0.5})
    assert (new.baseline, new.change, new.slower) == (None, None, False)


def test_the_change_is_relative_to_the_baseline() -> None:
    assert Comparison(measured("a", 0.3), 0.4).change == pytest.approx(-0.25)


def test_better_keeps_the_larger_share_of_each() -> None:
    one = {"a": measured("a", 0.2, 5.0), "b": measured("b", 0.5)}
    other = {"a": measured("a", 0.3, 4.0), "b": measured("b", 0.4), "c": measured("c", 0.1)}
    assert better(one, other) == {"a": other["a"], "b": one["b"], "c": other["c"]}


def test_missing_names_what_the_run_lacks() -> None:
    assert missing(["a"], {"a": 1.0, "z": 1.0, "b": 2.0}) == ["b", "z"]


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    assert read_baseline(path) == {}
    write_baseline(path, {"b": measured("b", 0.123456), "a": measured("a", 2.0)}, {"processor": "p"})
    assert read_baseline(path) == {"a": 2.0, "b": 0.1235}
    assert json.loads(path.read_text())["machine"] == {"processor": "p"}


# -- measuring again what looks slower -------------------------------------------------------------


class Suites:
    """Stands in for the suites: each run gives the next of these shares."""

    def __init__(self, *runs: dict[str, float]) -> None:
        self.runs, self.asked = list(runs), []

    def __call__(self, selection: list[str]) -> dict[str, Measurement]:
        self.asked.append(selection)
        return {name: measured(name, share) for name, share in self.runs.pop(0).items()}


def test_noise_is_measured_away(monkeypatch: pytest.MonkeyPatch) -> None:
    suites = Suites({"test_a::x": 0.2, "test_a::y": 0.4}, {"test_a::x": 0.39})
    monkeypatch.setattr(bench, "run_suites", suites)
    found = bench.measure_all("", {"test_a::x": 0.4, "test_a::y": 0.4})
    assert not any(item.slower for item in found)
    assert suites.asked[1] == ["benchmarks/test_a.py::x"]


def test_what_stays_slow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "run_suites", Suites(*[{"test_a::x": 0.2}] * (1 + bench.RETRIES)))
    (found,) = bench.measure_all("", {"test_a::x": 0.4})
    assert found.slower


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--check"], 1)], ids=["report", "check"])
def test_the_exit_code_is_1_when_checking_finds_something_slower(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = tmp_path / "baseline.json"
    write_baseline(
        baseline, {"test_a::x[nf4-16]": measured("test_a::x[nf4-16]", 0.4), "test_a::y": measured("test_a::y", 0.1)}, {}
    )
    runs = [{"test_a::x[nf4-16]": 0.2, "test_a::y": 0.1}, *[{"test_a::x[nf4-16]": 0.2}] * bench.RETRIES]
    monkeypatch.setattr(bench, "run_suites", Suites(*runs))
    monkeypatch.setattr(bench, "measure", lambda: machine.Machine(1e10, 1e10, 1e11, None))
    monkeypatch.setattr(sys, "argv", ["benchmarks.run", "--baseline", str(baseline), *arguments])
    assert bench.main() == code
    said = capsys.readouterr().out
    assert "slower by 50%: test_a::x[nf4-16]" in said
    assert "slower by 0%" not in said
    assert "test_a::y" in said


def test_update_writes_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    monkeypatch.setattr(bench, "run_suites", Suites({"a": 0.2, "b": 0.3}, {"a": 0.25, "b": 0.1}))
    monkeypatch.setattr(bench, "measure", lambda: machine.Machine(1e10, 1e10, 1e11, None))
    monkeypatch.setattr(sys, "argv", ["benchmarks.run", "--update", "--baseline", str(baseline)])
    assert bench.main() == 0
    assert read_baseline(baseline) == {"a": 0.25, "b": 0.3}


def test_the_committed_baseline_has_every_benchmark() -> None:
    listed = _pytest("--collect-only", "-q")
    names = [line.removeprefix("benchmarks/").replace(".py::", "::") for line in listed.splitlines() if "::" in line]
    assert names
    assert sorted(names) == sorted(read_baseline(bench.BASELINE))


# -- the pieces ------------------------------------------------------------------------------------


def _pytest(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_each_benchmark_runs_once() -> None:
    assert re.search(r"\d+ passed", _pytest("--benchmark-disable", "-q"))


def test_the_model_is_the_llama_that_its_config_describes(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_model(tmp_path / "model", TINY)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    weight = model.model.layers[1].mlp.up_proj.weight.detach()
    assert weight.dtype == torch.bfloat16
    assert weight.float().std() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(weight, model.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(model.model.norm.weight, torch.ones(64, dtype=torch.bfloat16))


def test_the_model_of_the_benchmark_has_its_1_1_billion_weights() -> None:
    # TinyLlama-1.1B's count.
    assert sum(torch.Size(shape).numel() for _, shape in Llama().shapes()) == 1_100_048_384


def test_a_model_that_is_there_is_left_alone(tmp_path: Path) -> None:
    weights = make_model(tmp_path, TINY) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    make_model(tmp_path, TINY)
    assert weights.stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_the_gguf_file_is_the_same_model(tmp_path: Path) -> None:
    """By the gguf package's own reader; query and key rows in pairs, as llama.cpp's converter permutes them."""
    from gguf import GGUFReader

    from benchmarks.peers.make_gguf import make_gguf

    folder = make_model(tmp_path / "model", TINY)
    found = {t.name: t.data.tobytes() for t in GGUFReader(make_gguf(folder, tmp_path / "model.gguf", TINY)).tensors}
    source = open_source(folder)
    assert len(found) == len(source.tensors)
    assert found["output.weight"] == source.read("lm_head.weight").view(torch.uint8).numpy().tobytes()
    assert found["blk.1.attn_norm.weight"] == torch.ones(64).numpy().tobytes()
    down = source.read("model.layers.1.mlp.down_proj.weight")
    assert found["blk.1.ffn_down.weight"] == down.view(torch.uint8).numpy().tobytes()
    key = source.read("model.layers.0.self_attn.k_proj.weight")  # 2 heads of 16 rows
    order = [head * 16 + half * 8 + i for head in range(2) for i in range(8) for half in range(2)]
    assert found["blk.0.attn_k.weight"] == key[order].view(torch.uint8).numpy().tobytes()


def test_a_run_tells_time_memory_and_when_lines_came() -> None:
    code = "import sys, time; x = bytearray(80_000_000); print('early', file=sys.stderr, flush=True); time.sleep(0.3)"
    # From a small process, as in the benchmark: a child starts with its parent's memory.
    outer = "import sys; from benchmarks.process import run; r = run([sys.executable, '-c', sys.argv[1]]); "
    outer += "print(r.peak_bytes, r.seconds, *r.lines[0])"
    done = subprocess.run([sys.executable, "-c", outer, code], cwd=ROOT, capture_output=True, text=True, check=True)
    peak, seconds, when, line = done.stdout.split()
    assert 80e6 < int(peak) < 120e6
    assert line == "early"
    assert 0.3 <= float(seconds) - float(when) < 5


def test_a_run_that_fails_says_what_it_wrote() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ended with 1.*no such thing"):
        process.run([sys.executable, "-c", "raise SystemExit('no such thing')"])


def _taken(seconds: float, megabytes: int, **stages: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "user_seconds": seconds,
        "system_seconds": 0.5,
        "peak_bytes": megabytes * 10**6,
        "output_bytes": 10**9,
        "stages": stages,
    }


@pytest.fixture
def result() -> dict[str, Any]:
    described = {"processor": "Some CPU", "features": "avx2", "threads": "2", "read": "1", "copy": "2", "fp32": "3"}
    ours = [_taken(s, 700, start=1.0, quantize=s - 1.5, end=0.5) for s in (6.0, 9.0, 5.0)]
    theirs = [_taken(s, 500, call=s - 1) for s in (3.0, 4.0, 3.5)]
    return {
        "date": "2026-01-01",
        "machine": described,
        "load_before": 0.1,
        "runs": {"woqfx": ours, "llama.cpp": theirs},
        "startup": {"torch": 0.75},
    }


def test_the_page_gives_medians_ratios_and_what_was_missed(result: dict[str, Any]) -> None:
    page = markdown(result)
    assert "| woqfx | 6.00 s | 5.00 to 9.00 s | 6.50 s | 700 MB | 1000 MB |" in page
    assert "Peak memory under 1 GB: met. 700 MB at most." in page
    # 6.0 / 3.5 and 6.0 / 2.5
    assert "No slower than llama.cpp: **missed**. Woqfx takes 1.71 times as long as the whole command" in page
    assert "2.40 times its own call (2.50 s)" in page
    assert "torch 0.75 s" in page
    assert "not quiet" not in page


def test_the_page_says_when_goals_are_met_and_when_others_were_at_work(result: dict[str, Any]) -> None:
    result["runs"]["woqfx"] = [_taken(3.0, 1001, start=1.0, quantize=1.5, end=0.5)]
    result["load_before"] = 2.5
    page = markdown(result)
    assert "No slower than llama.cpp: met." in page
    assert "Peak memory under 1 GB: **missed**. 1001 MB at most." in page
    assert "**not quiet**: load 2.5" in page


def test_a_page_replaces_what_is_between_its_markers() -> None:
    document = "a\n<!-- x -->\nold\n<!-- end of x -->\nb\n"
    assert embed(document, "x", "new\n") == "a\n<!-- x -->\nnew\n<!-- end of x -->\nb\n"
    with pytest.raises(ValueError, match="no place for y"):
        embed(document, "y", "new\n")


def test_the_documentation_shows_the_committed_results() -> None:
    page = (ROOT / "benchmarks" / "results" / "quantize_1b.md").read_text()
    assert page == markdown(json.loads((ROOT / "benchmarks" / "results" / "quantize_1b.json").read_text()))
    document = (ROOT / "docs" / "benchmarks.md").read_text()
    assert embed(document, "quantize_1b", page) == document
