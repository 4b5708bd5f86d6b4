"""The benchmark of kernels: its workers, its report, and what the documentation shows of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import woqfx
from benchmarks import kernels
from benchmarks.kernel_report import markdown
from benchmarks.neighbours import Neighbours
from benchmarks.peers import asked, kernel_worker
from benchmarks.peers.asked import ROOT
from benchmarks.peers.environment import environment
from benchmarks.peers.kernel_peers import INSTALLS, OWN, Peer, python_of
from benchmarks.peers.kernel_worker import Kernel, Packed, Problem, Worker
from benchmarks.publish import embed
from woqfx import Roofline, Scheme
from woqfx.bench import Figure

PROBLEM = Problem(n=48, k=64, group=32)


# -- what peers are given --------------------------------------------------------------------------


@pytest.mark.parametrize(("codes", "dtype", "middle"), [("int4", "int4_clip", 8), ("int8", "int8", 128)])
def test_integer_codes_are_those_of_the_dtype(codes: str, dtype: str, middle: int) -> None:
    found, scales = getattr(PROBLEM, codes)
    scheme = Scheme(dtype, scale_dtype="fp32")
    q = woqfx.quantize_nearest(torch.from_numpy(PROBLEM.weight), woqfx.registry().dtype(dtype), scheme, name="w")
    assert np.array_equal(found, q.unpacked().numpy().astype(np.int16) - middle)
    assert np.allclose(scales, q.params().scale.numpy(), rtol=1e-6)


def test_nf4_codes_are_those_of_the_dtype() -> None:
    found, scales = PROBLEM.nf4
    grid = woqfx.registry().dtype("nf4")
    assert grid.levels is not None
    assert np.array_equal(np.array(kernel_worker.NF4, np.float32), grid.levels.numpy())
    q = woqfx.quantize_nearest(torch.from_numpy(PROBLEM.weight), grid, Scheme("nf4", scale_dtype="fp32"), name="w")
    assert np.array_equal(found, q.unpacked().numpy())
    assert np.allclose(scales, q.params().scale.numpy(), rtol=1e-6)


# -- a worker --------------------------------------------------------------------------------------


class Recorder:
    """A kernel that multiplies exactly, or wrongly, and counts its copies."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.copies = factor, 0

    def pack(self, problem: Problem) -> Packed:
        def copy() -> Any:
            self.copies += 1
            return lambda x: lambda: torch.from_numpy(x @ problem.weight.T * np.float32(self.factor)).bfloat16()

        return Packed(problem.weight.nbytes, copy)


def refuse(problem: Problem) -> Packed:
    raise ValueError(f"no group of {problem.group}\nand more")


def test_a_worker_packs_times_and_says_how_far_its_product_is() -> None:
    exact, wrong = Recorder(), Recorder(factor=1.5)
    worker = Worker(
        [
            Kernel("x", "fp32", "fp32", exact.pack),
            Kernel("x", "int4", "int8", wrong.pack),
            Kernel("y", "a", "b", refuse),
        ]
    )
    listed = worker.answer({"do": "list"})["kernels"]
    assert listed == [("x", "fp32", "fp32"), ("x", "int4", "int8"), ("y", "a", "b")]
    size = 48 * 64 * 4
    problem = {"n": 48, "k": 64, "group": 32, "cache": 3 * size - 1}
    assert worker.answer({"do": "pack", "kernel": 0, **problem}) == {"nbytes": size, "copies": 4}
    assert exact.copies == 4
    first = worker.answer({"do": "time", "kernel": 0, "rows": 3, "seconds": 0.01})
    assert first["distance"] < 0.01  # bfloat16's rounding
    assert len(first["seconds"]) >= 1
    assert worker.answer({"do": "time", "kernel": 0, "rows": 3, "seconds": 0.01}).keys() == {"seconds"}
    worker.answer({"do": "pack", "kernel": 1, **problem})
    assert worker.answer({"do": "time", "kernel": 1, "rows": 2, "seconds": 0})["distance"] == pytest.approx(0.5, 0.02)
    assert worker.answer({"do": "pack", "kernel": 2, **problem}) == {"error": "ValueError: no group of 32"}
    worker.answer({"do": "time", "kernel": 0, "rows": 2, "seconds": 0})
    compared = worker.answer({"do": "compare", "kernel": 1, "other": 0, "rows": 2, "seconds": 0})
    assert compared["pairs"] == kernel_worker._FEWEST_PAIRS and compared["ratio"] > 0
    # Another problem takes the place of the last.
    worker.answer({"do": "pack", "kernel": 1, **problem, "group": 16})
    assert "KeyError" in worker.answer({"do": "time", "kernel": 0, "rows": 3, "seconds": 0})["error"]


WORKER = """
import os
import numpy
from benchmarks.peers.kernel_worker import Kernel, Packed, serve

def pack(problem):
    return Packed(problem.weight.nbytes, lambda: lambda x: lambda: x @ problem.weight.T)

def die(problem):
    os._exit(3)

def kernels(threads):
    print("noise that a library makes")
    return [Kernel("numpy", "fp32", str(threads), pack), Kernel("numpy", "none", "none", die)]

if __name__ == "__main__":
    serve(kernels)
"""


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A worker in a process of its own, from a module beside the real ones' package."""
    (tmp_path / "benchmarks" / "peers").mkdir(parents=True)
    for name in ("__init__.py", "peers/__init__.py", "peers/kernel_worker.py"):
        (tmp_path / "benchmarks" / name).write_text((ROOT / "benchmarks" / name).read_text())
    (tmp_path / "benchmarks" / "peers" / "kernels_fake.py").write_text(WORKER)
    monkeypatch.setattr(asked, "ROOT", tmp_path)
    found = Peer("fake", Path(sys.executable), threads=2)
    yield found
    found.close()


def test_a_worker_process_answers_and_its_death_is_told(peer: Peer) -> None:
    assert peer.kernels == [("numpy", "fp32", "2"), ("numpy", "none", "none")]
    assert peer.ask("pack", kernel=0, n=8, k=32, group=32, cache=0) == {"nbytes": 1024, "copies": 1}
    answer = peer.ask("time", kernel=0, rows=2, seconds=0)
    assert answer["distance"] < 1e-6 and answer["seconds"][0] > 0
    with pytest.raises(RuntimeError, match="fake ended with 3 when asked to pack"):
        peer.ask("pack", kernel=1, n=8, k=32, group=32, cache=0)


def test_between_requests_a_worker_is_stopped(peer: Peer) -> None:
    state = Path(f"/proc/{peer._process.pid}/stat")
    peer.ask("list")
    for _ in range(1000):
        if state.read_text().rpartition(")")[2].split()[0] == "T":
            break
    else:
        pytest.fail("it goes on")


def test_measuring_asks_everybody_and_a_crash_takes_nobody_along(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Roofline(1e6, {"fp32": 1e6}, "a guess")
    monkeypatch.setattr(kernels, "_limits", lambda: limits)
    monkeypatch.setattr(kernels, "last_level_cache", lambda: 0)
    other = Peer("fake", Path(sys.executable), threads=1)
    findings = kernels.Findings()
    try:
        other.kernels.pop()  # the one that crashes
        kernels.measure([peer, other], (8, 32), 16, (1, 3), 0.01, findings)
    finally:
        other.close()
    found = [(one["dtype"], one["compute_dtype"], one["rows"]) for one in findings.figures]
    assert found == [("fp32", "1", 1), ("fp32", "1", 3)]
    assert all(one["group_size"] == 16 and one["nbytes"] == 1024 for one in findings.figures)
    assert findings.figures[0]["limits"] == {"read_bandwidth": 1e6, "peaks": {"fp32": 1e6}, "how": "a guess"}
    assert "ended with 3 when asked to pack" in findings.missing["numpy, none in none, group 16"]
    assert "ended with 3" in findings.missing["numpy, fp32 in 2, group 16"]


def test_a_stranger_is_compared_with_what_everybody_knows(peer: Peer) -> None:
    peer.kernels = [("x", kernels.KNOWN, "fp32"), ("x", "int4", "fp32"), ("x", kernels.STRANGER, "fp32")]
    entries = [kernels.Entry(peer, number, 16) for number in range(3)]
    assert [(known.number, stranger.number) for known, stranger in kernels._strangers(entries)] == [(0, 2)]


def test_every_peer_has_a_module_and_pinned_packages() -> None:
    for module in (*OWN, *INSTALLS):
        assert (ROOT / "benchmarks" / "peers" / f"kernels_{module}.py").is_file()
    packages = [word for lines in INSTALLS.values() for line in lines for word in line if not word.startswith("-")]
    assert all("==" in package or package == "numpy<2" for package in packages)


def test_own_workers_run_here(tmp_path: Path) -> None:
    for module in OWN:
        assert python_of(module, tmp_path) == Path(sys.executable)


def test_an_environment_is_made_once_and_again_for_other_packages(tmp_path: Path) -> None:
    nothing = ["--dry-run", "--no-index", "pip"]
    made = environment(tmp_path / "peer", nothing)
    assert made == tmp_path / "peer" / "bin" / "python"
    (tmp_path / "peer" / "kept").touch()
    environment(tmp_path / "peer", nothing)
    assert (tmp_path / "peer" / "kept").exists()
    environment(tmp_path / "peer", nothing, nothing)
    assert not (tmp_path / "peer" / "kept").exists()


@pytest.mark.slow
@pytest.mark.parametrize("module", OWN)
def test_own_kernels_multiply_by_the_weight(module: str) -> None:
    from importlib import import_module

    before = torch.get_num_threads(), torch.is_grad_enabled()
    try:
        worker = Worker(import_module(f"benchmarks.peers.kernels_{module}").kernels(1))
        count = len(worker.answer({"do": "list"})["kernels"])
        assert count >= 4
        for kernel in range(count):
            packed = worker.answer({"do": "pack", "kernel": kernel, "n": 64, "k": 128, "group": 32, "cache": 0})
            assert "error" not in packed, packed
            answer = worker.answer({"do": "time", "kernel": kernel, "rows": 3, "seconds": 0})
            assert answer["distance"] < kernels._FARTHEST
    finally:
        torch.set_num_threads(before[0])
        torch.set_grad_enabled(before[1])
        if module == "woqfx":
            woqfx.unregister("a stranger")


def test_neighbours_are_those_who_are_not_our_own() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        all_ours, alone = Neighbours([os.getpid(), busy.pid]), Neighbours([os.getpid()])
        start = time.monotonic()
        while alone.used() - all_ours.used() < 0.1 and time.monotonic() - start < 60:
            time.sleep(0.2)
        # The same machine at the same time: what differs is the busy process.
        assert alone.used() - all_ours.used() >= 0.1
    finally:
        busy.kill()
        busy.wait()


# -- the report ------------------------------------------------------------------------------------


def figure(name: str, dtype: str, compute: str, rows: int, share: float, group: int = 128) -> dict[str, Any]:
    """One that takes as long as this share of a machine that reads 1 GB/s and does 1 G operations a second means."""
    limits = Roofline(1e9, {"fp32": 1e9, "bf16": 1e9, "int8": 1e9}, "loops")
    exact = Figure(name, dtype, compute, group, "", (1000, 1000), rows, 500_000, 1.0, limits)
    return {**exact.to_json(), "seconds": exact.share / share, "distance": 0.1}


@pytest.fixture
def result() -> dict[str, Any]:
    figures = [
        figure("woqfx", "nf4", "fp32", 1, 0.90),
        figure("woqfx", "stranger16", "fp32", 1, 0.89),
        figure("woqfx", "int8", "fp32", 1, 0.80),
        figure("peer", "int4", "bf16", 1, 0.60),
        figure("woqfx", "nf4", "int8", 128, 0.70),
        figure("peer", "int4", "int8", 128, 0.75),
        figure("woqfx", "nf4", "bf16", 128, 0.85),
        figure("torch dense", "bf16", "bf16", 128, 0.85),
    ]
    return {
        "date": "2026-01-01",
        "processor": "Some CPU",
        "features": "avx2",
        "threads": 2,
        "others": 0.02,
        "figures": figures,
        "strangers": [
            {"compute_dtype": "fp32", "group_size": 128, "rows": 1, "ratio": 1.011},
            {"compute_dtype": "int8", "group_size": 128, "rows": 1, "ratio": 0.99},
        ],
        "missing": {"gone": "it was not there"},
    }


def test_the_page_has_a_line_for_each_kernel_and_a_column_for_each_case(result: dict[str, Any]) -> None:
    page = markdown(result)
    assert "| computed in | weights | by | g 128, 1 row | g 128, 128 rows |" in page
    # 500 kB at 1 GB/s is 0.5 ms; a product for one row, 2 M operations, 2 ms.
    assert "| fp32 | nf4 | **woqfx** | 2.22 ms (90%) |  |" in page
    assert "| bf16 | int4 | peer | 3.33 ms (60%) |  |" in page
    assert "reads memory at 1.0 GB/s; peaks in G operations a second: fp32 1, bf16 1, int8 1 (loops)" in page
    assert "Not measured: gone (it was not there)." in page
    assert "not quiet" not in page
    assert "**not quiet**: others used up to 52% of a processor" in markdown({**result, "others": 0.52})


def test_the_page_says_which_goals_are_met_and_how_far_off_others_are(result: dict[str, Any]) -> None:
    page = markdown(result)
    assert "- One row, 4 bits: 88 % of the limit: met. 89% at worst (stranger16 in fp32, group 128)." in page
    assert "- One row, 8 bits: 88 % of the limit: **missed**. 80% at worst (int8 in fp32, group 128)." in page
    # 0.60 / 0.89
    assert "faster than every peer's 4 bits: met. 0.67 times as long as peer's int4 in bf16 at worst" in page
    # 0.75 / 0.70
    assert "128 rows in int8: faster than every peer's 4 bits: **missed**. 1.07 times as long as peer's int4" in page
    assert "128 rows in int8, group 128: 75 % of the peak: **missed**. 70% at worst" in page
    assert "128 rows in bf16: 80 % of the peak: met. 85% at worst" in page
    assert "no slower than PyTorch's dense bf16: met. 1.00 times" in page
    assert "A stranger's 16 levels: within 3 % of nf4: met. 1.011 times at worst (in fp32, group 128, 1 rows; " in page
    assert "128 rows in fp32" not in page  # was not measured


def test_the_documentation_shows_the_committed_results() -> None:
    results = ROOT / "benchmarks" / "results"
    page = (results / "kernels.md").read_text()
    assert page == markdown(json.loads((results / "kernels.json").read_text()))
    document = (ROOT / "docs" / "benchmarks.md").read_text()
    assert embed(document, "kernels", page) == document
