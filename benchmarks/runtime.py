"""Whole models: woqfx's LLM runtime and its peers in turn, on one machine, in one run.

    python -m benchmarks.runtime [--only PATTERN] [--rounds 5] [--name runtime]

SmolLM2-135M-Instruct (`benchmarks.quality_model`) and a llama of 1.1 billion random weights (`benchmarks.make_model`),
at the same bits per weight. Each peer runs in a process and an environment of its own; in each round each reads a
prompt of 512 tokens, and generates tokens one at a time after a short one. Medians of the rounds; two threads. Writes
`results/NAME.json` and `results/NAME.md`, and puts the latter into `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.cache import default_cache
from benchmarks.machine import telling_features
from benchmarks.neighbours import Neighbours
from benchmarks.peers import llama_cpp_setup
from benchmarks.peers.asked import Asked
from benchmarks.publish import name_argument, publish
from benchmarks.runtime_report import markdown
from woqfx import registry
from woqfx.cpu import this_cpu

THREADS = 2
PROMPT, AFTER, NEW, ROWS = 512, 64, 32, 8


@dataclass(frozen=True)
class Contender:
    """A model in some form: who runs it, and how its file or folder is made in the cache if it is not there."""

    model: str
    bits: str
    by: str
    make: Callable[[Path], Path]
    options: dict[str, Any] = field(default_factory=dict)
    rows: bool = False

    @property
    def name(self) -> str:
        """For people, and for `--only`."""
        return f"{self.model} {self.bits} {self.by}"


def _source(model: str, cache: Path) -> Path:
    if model == "SmolLM2-135M":
        folder = cache / "quality"
        _run([sys.executable, "-m", "benchmarks.quality_model", str(folder)], unless=folder / "model.gguf")
        return folder / "model"
    folder = cache / "llama-1.1b"
    _run([sys.executable, "-m", "benchmarks.make_model", str(cache)], unless=folder / "model.safetensors")
    return folder


def _float_gguf(model: str, cache: Path) -> Path:
    _source(model, cache)
    if model == "SmolLM2-135M":
        return cache / "quality" / "model.gguf"
    made = cache / "llama-1.1b-bf16.gguf"
    _run([sys.executable, "-m", "benchmarks.peers.make_gguf", str(cache)], unless=made)
    return made


def _checkpoint(model: str, dtype: str, compute: str) -> Callable[[Path], Path]:
    def make(cache: Path) -> Path:
        source, made = _source(model, cache), cache / "runtime" / f"{model}-{dtype}-{compute}"
        command = [str(Path(sys.executable).with_name("woqfx")), "quantize", str(source), "--dtype", dtype]
        command += ["--group-size", "32", "--compute-dtype", compute, "--progress", "none", "--out", str(made)]
        _run(command, unless=made / "woqfx.json")
        return made

    return make


def _gguf(model: str, kind: str) -> Callable[[Path], Path]:
    def make(cache: Path) -> Path:
        source, made = _float_gguf(model, cache), cache / "runtime" / f"{model}-{kind}.gguf"
        python = llama_cpp_setup.environment(cache)
        command = [str(python), str(llama_cpp_setup.QUANTIZE), str(source), str(made), f"--type={kind}"]
        _run(command, unless=made)
        return made

    return make


def _run(command: Sequence[str], *, unless: Path) -> None:
    if not unless.exists():
        print(" ".join(command), file=sys.stderr)
        unless.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1], stdout=sys.stderr)


def contenders() -> Iterator[Contender]:
    """Everyone."""
    pairs = {
        "SmolLM2-135M": (("int4_clip", "Q4_0"), ("int8", "Q8_0")),
        "1.1B llama": (("int4_clip", "Q4_0"), ("int4_clip", "Q4_K_M")),
    }
    for model, kinds in pairs.items():
        seen = set[str]()
        for dtype, kind in kinds:
            if dtype not in seen:
                yield Contender(model, f"{dtype} g32, int8", "woqfx", _checkpoint(model, dtype, "int8"), rows=True)
            seen.add(dtype)
            yield Contender(model, kind, "llama_cpp", _gguf(model, kind))
        yield Contender(model, "bf16", "transformers", lambda cache, model=model: _source(model, cache))  # type: ignore[misc]


def _python(by: str, cache: Path) -> Path:
    return llama_cpp_setup.environment(cache) if by == "llama_cpp" else Path(sys.executable)


def measure(field_: Sequence[Contender], cache: Path, rounds: int) -> dict[str, Any]:
    """All contenders, in turn; those that fail are in `missing`."""
    figures, missing, workers = dict[str, dict[str, Any]](), dict[str, str](), dict[str, Asked]()
    bandwidths, others = list[float](), 0.0
    try:
        for one in field_:
            workers[one.name] = Asked(_python(one.by, cache), f"benchmarks.peers.runtime_{one.by}", threads=THREADS)
            asked = {"name": "model", "path": str(one.make(cache)), "options": one.options}
            answer = workers[one.name].ask("load", **asked)
            if "error" in answer:
                missing[one.name] = answer["error"]
                continue
            entry = {"model": one.model, "bits": one.bits, "by": one.by, "nbytes": answer["nbytes"]}
            figures[one.name] = {**entry, "load": answer["seconds"], "prompt": [], "decode": [], "batch": []}
        ready = [one for one in field_ if one.name in figures]
        for _ in range(rounds + 1):
            neighbours = Neighbours([os.getpid(), *(worker.pid for worker in workers.values())])
            bandwidths.append(registry().backend("torch_cpu").roofline(THREADS).read_bandwidth)
            for one in ready:
                ask, taken = workers[one.name].ask, figures[one.name]
                taken["prompt"].append(PROMPT / ask("prompt", name="model", count=PROMPT)["seconds"])
                taken["decode"].append(NEW / ask("decode", name="model", after=AFTER, count=NEW)["seconds"])
                if one.rows:
                    asked = {"name": "model", "rows": ROWS, "after": AFTER, "count": NEW}
                    taken["batch"].append(ROWS * NEW / ask("batch", **asked)["seconds"])
            others = max(others, neighbours.used())
    finally:
        for worker in workers.values():
            worker.close()
    for taken in figures.values():
        for what in ("prompt", "decode", "batch"):
            taken[what] = statistics.median(taken[what][1:]) if taken[what] else None  # the first round warms up
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": this_cpu().model,
        "features": telling_features(),
        "threads": THREADS,
        "rounds": rounds,
        "read_bandwidth": statistics.median(bandwidths),
        "others": round(others, 3),
        "llama_cpp": llama_cpp_setup.VERSION,
        "figures": list(figures.values()),
        "missing": missing,
    }


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description="Time whole models of woqfx and its peers in turn.")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="for models and peers (%(default)s)")
    parser.add_argument("--only", default="*", help="contenders whose name this pattern matches (all)")
    parser.add_argument("--rounds", type=int, default=5, help="how many are counted (%(default)s)")
    parser.add_argument("--prepare", action="store_true", help="make models and environments, and measure nothing")
    name_argument(parser, "runtime")
    arguments = parser.parse_args()
    chosen = [one for one in contenders() if fnmatch.fnmatch(one.name, arguments.only)]
    for one in chosen:
        one.make(arguments.cache)
    if arguments.prepare:
        return
    result = measure(chosen, arguments.cache, arguments.rounds)
    page = markdown(result)
    publish(arguments.name, result, page)
    print(page)


if __name__ == "__main__":
    main()
