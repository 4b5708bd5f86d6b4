"""Quantize 1.1 billion weights to 4 bits: woqfx and llama.cpp in turn, on the same numbers.

    python -m benchmarks.quantize_1b [--runs 5] [--name NAME]

Makes what it needs in the cache folder (the model twice, 2.2 GB each, and llama.cpp, which takes a quarter of an hour
to build), then writes `results/NAME.json` and `results/NAME.md`, and puts the latter into `docs/benchmarks.md` if that
has a place for it. Both read from the page cache; both may use two threads. woqfx keeps embeddings and head in
bfloat16, so llama.cpp is run both as it comes (embeddings to Q4_0, head to Q6_K) and told to keep these two, which is
the same work. Times are of whole commands; llama.cpp's own call is timed as well, since its usual program has no Python
to start.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.cache import default_cache
from benchmarks.peers import llama_cpp_setup
from benchmarks.process import Run, run, warm
from benchmarks.publish import name_argument, publish
from benchmarks.report import markdown

THREADS = 2


@dataclass(frozen=True)
class Job:
    """One of the commands that take turns. `inner` finds what it says about itself in what it wrote."""

    command: list[str]
    out: Path
    inner: Callable[[Run], dict[str, float]]


def woqfx_stages(taken: Run) -> dict[str, float]:
    """Seconds up to the first weight, over the weights, and after them, from the events of the run."""
    at = {event.get("event"): when for when, event in _objects(taken)}
    return {
        "start": at["RunStarted"],
        "quantize": at["RunFinished"] - at["RunStarted"],
        "end": taken.seconds - at["RunFinished"],
    }


def llama_cpp_call(taken: Run) -> dict[str, float]:
    """Seconds of llama.cpp's own call."""
    return {"call": next(found["call_seconds"] for _, found in _objects(taken) if "call_seconds" in found)}


def _objects(taken: Run) -> list[tuple[float, dict[str, Any]]]:
    return [(when, json.loads(line)) for when, line in taken.lines if line.startswith("{")]


def prepare(cache: Path) -> dict[str, Job]:
    """Make models and peer, in processes of their own so that this one stays small (see `process`)."""
    cache.mkdir(parents=True, exist_ok=True)
    for module in ("benchmarks.make_model", "benchmarks.peers.make_gguf"):
        subprocess.run([sys.executable, "-m", module, str(cache)], check=True, stdout=subprocess.DEVNULL)
    peer = llama_cpp_setup.environment(cache)
    model, gguf = cache / "llama-1.1b", cache / "llama-1.1b-bf16.gguf"
    out, out_gguf = cache / "out", cache / "out.gguf"
    woqfx = [str(Path(sys.executable).with_name("woqfx")), "quantize", str(model), "--dtype", "int4_clip"]
    woqfx += ["--group-size", "32", "--out", str(out), "--progress", "json"]
    jobs = {"woqfx": Job(woqfx, out, woqfx_stages)}
    for name, keep in (("llama.cpp", False), ("llama.cpp, same layers", True)):
        argv = list(llama_cpp_setup.command(peer, gguf, out_gguf, threads=THREADS, keep_embeddings=keep))
        jobs[name] = Job(argv, out_gguf, llama_cpp_call)
    for path in (model / "model.safetensors", gguf):
        warm(path)
    return jobs


def take_turns(jobs: dict[str, Job], runs: int) -> dict[str, list[dict[str, Any]]]:
    """Run each job once to warm up, then `runs` times, in turn; outputs are removed after each."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for number in range(runs + 1):
        for name, job in jobs.items():
            _remove(job.out)
            os.sync()  # what the last one wrote is not this one's burden
            one = run(job.command, environment)
            size = _size(job.out)
            _remove(job.out)
            print(f"{number or 'warm-up'}: {name}: {one.seconds:.2f} s, {one.peak_bytes / 1e6:.0f} MB", file=sys.stderr)
            if number:
                facts = {key: value for key, value in asdict(one).items() if key != "lines"}
                taken[name].append({**facts, "output_bytes": size, "stages": job.inner(one)})
    return taken


def startup(model: Path, runs: int) -> dict[str, float]:
    """The medians of the stages before the first weight."""
    found = []
    for _ in range(runs):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.stages", str(model)], check=True, capture_output=True, text=True
        )
        found.append(json.loads(done.stdout))
    return {stage: statistics.median(one[stage] for one in found) for stage in found[0]}


def describe_machine() -> dict[str, str]:
    """The machine and its limits, measured in a process of its own."""
    code = "import json, benchmarks.machine as m; print(json.dumps(m.measure().describe()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    described: dict[str, str] = json.loads(done.stdout)
    return described


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")))


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description="Quantize 1.1B weights with woqfx and llama.cpp in turn.")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="for models and peers (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="of each, besides one to warm up (%(default)s)")
    name_argument(parser, "quantize_1b")
    arguments = parser.parse_args()
    jobs = prepare(arguments.cache)
    before, load = describe_machine(), os.getloadavg()[0]
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": before,
        "load_before": round(load, 2),
        "runs": take_turns(jobs, arguments.runs),
        "startup": startup(arguments.cache / "llama-1.1b", arguments.runs),
    }
    page = markdown(result)
    publish(arguments.name, result, page)
    print(page)


if __name__ == "__main__":
    main()
