"""Runs jobs; those that get killed in a process of their own that shares the imports of this one.

Reads one JSON object a line from standard input, the fields of `Trial`, and answers each with one, the fields of
`Outcome`. A process that has used threads of OpenMP must not fork, so there are none here.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trial:
    """A job and what befalls it.

    `at` is the number of the step at which `what` happens: "die", "die in the middle", "errno" (`number`), or "power"
    (the disk after a power cut, with `loss` and `seed`, is written to `image`). `seconds` kills it from outside.
    `every_item` commits after each item instead of every two seconds.
    """

    source: str  # a folder, or the family of a tiny live model
    out: str
    dtype: str = "int4_clip"
    algorithm: str = "rtn"
    shard_bytes: int = 20_000
    overwrite: bool = False
    every_item: bool = True
    what: str = ""
    at: int = -1
    number: int = 0
    loss: str = ""
    seed: int = 0
    image: str = ""
    seconds: float = -1.0

    @property
    def kills(self) -> bool:
        """Whether it needs a process of its own."""
        return self.what.startswith("die") or self.seconds >= 0


@dataclass(frozen=True)
class Outcome:
    """How it ended: the steps taken if it lived to tell, and the class and message of its error."""

    killed: bool
    steps: list[str]
    error: str = ""
    message: str = ""
    seconds: float = 0.0


def serve() -> None:
    """Answer until there is no more input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(asdict(_run(Trial(**json.loads(line))))), file=answers, flush=True)


def _run(trial: Trial) -> Outcome:
    _opened(trial.source, trial.dtype, trial.algorithm)
    start = time.monotonic()
    if not trial.kills:
        facts = _work(trial)
        return Outcome(killed=False, seconds=time.monotonic() - start, **facts)
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        os.close(told)
        os.write(tell, json.dumps(_work(trial)).encode())
        os._exit(0)
    os.close(tell)
    if trial.seconds >= 0:
        time.sleep(trial.seconds)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(told) as pipe:
        report = pipe.read()
    _, status = os.waitpid(child, 0)
    facts = json.loads(report) if report else {"steps": []}
    return Outcome(killed=os.WIFSIGNALED(status), seconds=time.monotonic() - start, **facts)


@cache
def _opened(source: str, dtype: str, algorithm: str) -> Any:
    import shrinking
    from folders_of_models import request
    from tiny_models import tiny_model

    import woqfx
    from woqfx.api import calibrate
    from woqfx.planning import make_plan
    from woqfx.plugins import registry
    from woqfx.source import FolderSource, ModuleSource

    opened = FolderSource(Path(source)) if "/" in source else ModuleSource(tiny_model(source))
    if algorithm not in registry().names("algorithm"):
        woqfx.register(shrinking.Plugin(), "shrinking")
    plan = make_plan(opened, request(dtype=dtype, algorithm=algorithm, calibration=shrinking.data()))
    return opened, plan, calibrate(opened, plan)


class PowerCut(BaseException):
    """Nothing that the process does after this reaches the image of the disk."""


def _work(trial: Trial) -> dict[str, Any]:
    from disk import Disk
    from steps import Steps, die, die_in_the_middle, fail

    from woqfx.disk import writer
    from woqfx.engine import write_checkpoint

    writer._COMMIT_SECONDS = 0.0 if trial.every_item else 2.0
    disk = Disk(Path(trial.out).parent) if trial.what == "power" else None

    def cut_power(*_: Any) -> None:
        assert disk is not None
        steps.__exit__()
        disk.after_power_cut(Path(trial.image), trial.loss, trial.seed)  # type: ignore[arg-type]
        raise PowerCut

    acts = {"die": die, "die in the middle": die_in_the_middle, "errno": fail(trial.number), "power": cut_power}
    source, plan, calibration = _opened(trial.source, trial.dtype, trial.algorithm)
    error: BaseException | None = None
    with Steps(trial.at, acts.get(trial.what), disk.watch if disk else None) as steps:
        try:
            for _ in write_checkpoint(
                source,
                plan,
                Path(trial.out),
                calibration=calibration,
                overwrite=trial.overwrite,
                shard_bytes=trial.shard_bytes,
            ):
                pass
        except BaseException as caught:
            error = caught
    return {"steps": steps.taken, "error": type(error).__name__ if error else "", "message": str(error or "")}


if __name__ == "__main__":
    serve()
