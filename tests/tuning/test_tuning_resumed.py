"""Tuning that is stopped goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import hashlib
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model

import woqfx
from woqfx import CalibrationRequest, TuningOptions
from woqfx.cli.resuming import command_of
from woqfx.disk.output import JOURNAL, WORK
from woqfx.errors import CheckpointError, OutputError
from woqfx.inspection import UnfinishedRun, inspect
from woqfx.tuning.point import Point
from woqfx.tuning.tune import Tuning

STEPS = 56  # of 28 sequences, two at a time, four times; judged and kept after each seventh
OPTIONS = TuningOptions(passes=4, rate=0.003)


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> Path:
    """A folder with `original`, `quantized`, and what came of a straight run: `straight`."""
    folder = tmp_path_factory.mktemp("resumed")
    tiny_model("llama").save_pretrained(folder / "original")
    woqfx.quantize(str(folder / "original"), out=folder / "quantized", group_size=16, progress="none")
    assert tune(folder, folder / "straight").better
    return folder


def tune(
    folder: Path,
    out: Path,
    *,
    stop: int = 0,
    options: TuningOptions = OPTIONS,
    taken: list[int] | None = None,
    **asked: bool,
) -> Tuning:
    rows = torch.randint(3, 100, (32, 24), generator=torch.Generator().manual_seed(0))
    data = CalibrationRequest(rows, samples=32, seq_len=24)

    def report(done: int, _: int) -> None:
        if taken is not None:
            taken.append(done)
        if done == stop:
            raise Stopped

    return woqfx.tune(
        folder / "quantized", folder / "original", out, data=data, options=options, report=report, **asked
    )


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize("stop", [1, 30, STEPS])
def test_same_bytes(paths, tmp_path, stop):
    with pytest.raises(Stopped):
        tune(paths, tmp_path / "out", stop=stop)
    assert (tmp_path / "out" / JOURNAL).exists()
    found = tune(paths, tmp_path / "out")
    assert found.better
    assert contents(tmp_path / "out") == contents(paths / "straight")


def test_only_what_is_left_is_done(paths, tmp_path):
    with pytest.raises(Stopped):
        tune(paths, tmp_path / "out", stop=30)
    assert Point.read(tmp_path / "out" / WORK / "tuning.safetensors").steps == 28
    taken: list[int] = []
    tune(paths, tmp_path / "out", taken=taken)
    assert taken == list(range(29, STEPS + 1))


@pytest.mark.slow
def test_killed(paths, tmp_path):
    """At moments that nobody chose, until it is done."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        f"sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}\n"
        f"from {Path(__file__).stem} import tune\n"
        f"tune(Path({str(paths)!r}), Path({str(tmp_path / 'out')!r}))\n"
    )
    for wait in (0.3, 0.9):
        process = subprocess.Popen([sys.executable, script])
        while process.poll() is None and not (tmp_path / "out" / WORK).exists():
            time.sleep(0.05)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, script], check=True)
    assert contents(tmp_path / "out") == contents(paths / "straight")


def test_another_request_is_refused_and_may_replace_it(paths, tmp_path):
    with pytest.raises(Stopped):
        tune(paths, tmp_path / "out", stop=10)
    other = TuningOptions(passes=4, rate=0.003, seed=1)
    with pytest.raises(OutputError, match="seed"):
        tune(paths, tmp_path / "out", options=other)
    assert tune(paths, tmp_path / "out", options=other, overwrite=True).better


DAMAGE = {
    "a number": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "what is said of it": lambda data: data.replace(b'steps\\": 7', b'steps\\": 9'),
    "its header": lambda data: data[:9] + b"????" + data[13:],
    "its end": lambda data: data[:100],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_point_that_is_damaged_is_refused_and_may_be_replaced(paths, tmp_path, damage):
    with pytest.raises(Stopped):
        tune(paths, tmp_path / "out", stop=8)
    file = tmp_path / "out" / WORK / "tuning.safetensors"
    before = file.read_bytes()
    file.write_bytes(damage(before))
    assert file.read_bytes() != before
    with pytest.raises(CheckpointError, match=r"is damaged; start afresh with overwrite=True"):
        tune(paths, tmp_path / "out")
    taken: list[int] = []
    with pytest.raises(Stopped):
        tune(paths, tmp_path / "out", stop=1, taken=taken, overwrite=True)
    assert taken == [1]


def test_inspect_says_how_to_go_on(paths, tmp_path):
    with pytest.raises(Stopped):
        tune(paths, tmp_path / "out", stop=30)
    found = inspect(tmp_path / "out")
    assert isinstance(found, UnfinishedRun)
    assert found.steps == 28
    command = shlex.split(command_of(found))
    assert command[:5] == ["woqfx", "tune", str(paths / "quantized"), "--original", str(paths / "original")]
    given = dict(zip(command[3::2], command[4::2], strict=True))
    assert {
        "--passes": "4",
        "--rate": "0.003",
        "--samples": "32",
        "--out": str(tmp_path / "out"),
    }.items() <= given.items()


def test_what_is_no_better_leaves_an_earlier_checkpoint_as_it_was(paths, tmp_path):
    woqfx.convert(paths / "quantized", tmp_path / "out", progress="none")
    before = contents(tmp_path / "out")
    assert not tune(paths, tmp_path / "out", options=TuningOptions(rate=100), overwrite=True).better
    assert contents(tmp_path / "out") == before
