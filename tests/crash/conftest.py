"""The fork server, and a job that every test of crashes does."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
from folders_of_models import digests as all_digests
from folders_of_models import saved

from woqfx.blocks.report import TIMINGS
from woqfx.disk.checkpoint import Checkpoint
from woqfx.errors import CheckpointError, UnfinishedError

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # also for processes that are forked from this one

from fork_server import Outcome, Trial  # noqa: E402 - the path must be there first


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file but the one that tells of times."""
    return {name: digest for name, digest in all_digests(folder).items() if name != TIMINGS}


class ForkServer:
    """Sends trials to the server process and waits for their outcome."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(HERE), str(HERE.parent)])
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, trial: Trial) -> Outcome:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(asdict(trial)) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=120)


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@dataclass
class Job:
    """A run that may be stopped and must end as one that was not: with the files `expected`, byte for byte.

    `before` are the files of the checkpoint that the output folder holds at the start, if it holds one.
    """

    server: ForkServer
    trial: Trial
    expected: dict[str, str]
    before: dict[str, str]
    steps: list[str]
    start: Path | None = None

    def begin(self, parent: Path) -> Path:
        """An output folder as it is before the run."""
        out = parent / "out"
        parent.mkdir(parents=True, exist_ok=True)
        if self.start is not None:
            shutil.copytree(self.start, out)
        return out

    def run(self, out: Path, **changes: object) -> Outcome:
        return self.server.run(replace(self.trial, out=str(out), **changes))  # type: ignore[arg-type]

    def killed_at_random_moments(self, place: Path, times: int) -> Iterator[tuple[Path, float]]:
        """So many output folders in each of which a run was killed, and after how many seconds.

        A run that ended before its moment does not count; it tells that runs take less time than the first one took.
        """
        chance = random.Random(0)
        usual = self.run(self.begin(place / "timing"), every_item=False).seconds
        killed, numbers = 0, itertools.count()
        while killed < times:
            out, moment = self.begin(place / str(next(numbers))), chance.uniform(0, usual)
            outcome = self.run(out, every_item=False, seconds=moment)
            if outcome.killed:
                yield out, moment
                killed += 1
            else:
                usual = min(usual, outcome.seconds)

    def check_readable(self, out: Path) -> None:
        """The folder is the whole old checkpoint, or the whole new one, or says that it is neither."""
        try:
            checkpoint = Checkpoint(out)
        except UnfinishedError:
            return
        except CheckpointError:
            assert not self.before
            assert not out.exists() or not list(out.iterdir())
            return
        checkpoint.verify()
        found = digests(out)
        listed = {name: found[name] for name in (*checkpoint.manifest.files, "woqfx.json")}
        assert listed in (self.before, self.expected)

    def finish(self, out: Path) -> None:
        """Run it again, as a user would, and check that everything is as if it had not been stopped."""
        again = self.run(out)
        if "holds a finished checkpoint" not in again.message:
            assert not again.killed
            assert again.error == "", again.message
        assert digests(out) == self.expected
        shutil.rmtree(out)


@pytest.fixture(scope="session")
def memory(tmp_path_factory) -> Iterator[Path]:
    """A folder in memory, where there is one: what is proved does not depend on the medium, and syncs take time."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path_factory.mktemp("memory")
        return
    folder = Path(tempfile.mkdtemp(dir=shared))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def place(memory) -> Iterator[Path]:
    """A folder of the test's own in memory."""
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def model(memory) -> Path:
    return saved("llama", memory, num_hidden_layers=1)


@pytest.fixture(scope="session", params=["new", "over another"])
def job(request, server, model, memory) -> Job:
    """Quantize a small model into several shards; into a new folder, or over a checkpoint with more of them."""
    return make_job(server, Trial(source=str(model), out="", overwrite=request.param == "over another"), memory)


@pytest.fixture(scope="session", params=[("llama", "awq"), ("t5", "shrinking")], ids="-".join)
def calibrated_job(request, server, memory) -> Job:
    """The same with an algorithm that looks at data: a decoder, and an encoder-decoder whose blocks pass biases on."""
    family, algorithm = request.param
    source = saved(family, memory)
    return make_job(server, Trial(source=str(source), out="", algorithm=algorithm, shard_bytes=40_000), memory)


@pytest.fixture(scope="session")
def gptq_job(server, memory) -> Job:
    """GPTQ, whose commits are far apart: nothing is safe between the ends of two blocks but what a block gave."""
    source = saved("llama", memory, num_hidden_layers=4)
    trial = Trial(source=str(source), out="", algorithm="gptq", shard_bytes=4_000_000, every_item=False)
    return make_job(server, trial, memory)


def make_job(server: ForkServer, trial: Trial, memory: Path) -> Job:
    """Run it once without an accident, to know what must come of it."""
    folder = Path(tempfile.mkdtemp(dir=memory))
    job = Job(server, trial, expected={}, before={}, steps=[])
    if trial.overwrite:
        job.start = folder / "start"
        assert job.run(job.start, dtype="int8", shard_bytes=10_000).error == ""
        job.before = digests(job.start)
    whole = job.run(job.begin(folder / "never stopped"))
    assert whole.error == "", whole.message
    job.expected, job.steps = digests(folder / "never stopped" / "out"), whole.steps
    return job
