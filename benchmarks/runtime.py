"""Whole models: woqfx's LLM runtime and its peers in turn, on one machine, in one run.

    python -m benchmarks.runtime [--only PATTERN] [--rounds 5] [--name runtime]

SmolLM2-135M-Instruct (`benchmarks.quality_model`) and llamas of random weights (`benchmarks.make_model`), at the same
bits per weight; `benchmarks.runtime_field` lists who takes part. Each peer runs in a process and an environment of its
own. It loads its model, and again while the bytes of the files are read in turn with it; then in each round it reads a
prompt of 512 tokens, and generates tokens one at a time after a short one, while the bandwidth of memory is measured
before and after. That may change within seconds, so everyone generates several times a round, briefly and in turn.
Medians of the samples, and of what was compared within each turn; two threads. Writes `results/NAME.json` and
`results/NAME.md`, and puts the latter into `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from benchmarks import backed_memory
from benchmarks.cache import default_cache
from benchmarks.machine import THREADS, whence
from benchmarks.neighbours import Neighbours
from benchmarks.peers import llama_cpp_setup
from benchmarks.peers.asked import Asked
from benchmarks.publish import name_argument, publish
from benchmarks.runtime_field import Contender, contenders, python_of
from benchmarks.runtime_report import markdown
from woqfx import registry

PROMPT, AFTER, NEW, ROWS, LOADS = 512, 64, 32, 8, 3
#: How often everyone generates in a round.
TURNS = 3
_PIECE = 1 << 24


def measure(field: Sequence[Contender], cache: Path, rounds: int) -> dict[str, Any]:
    """All contenders, in turn; those that fail are in `missing`."""
    figures, missing, workers = dict[str, dict[str, Any]](), dict[str, str](), dict[str, Asked]()
    others = 0.0
    try:
        for one in field:
            worker = Asked(python_of(one.by, cache), f"benchmarks.peers.runtime_{one.by}", threads=THREADS)
            workers[one.name] = worker
            answer = worker.ask("load", name="model", path=str(one.make(cache)), options={})
            if "error" in answer:
                missing[one.name] = answer["error"]
                continue
            told = {key: answer[key] for key in ("nbytes", "bytes_per_token")}
            if one.by == "llama_cpp":
                told["bytes_per_token"] = bytes_per_token(one.make(cache))
            taken: dict[str, list[float]] = {what: [] for what in _MEASURED}
            figures[one.name] = {"model": one.model, "bits": one.bits, "by": one.by, **told, **taken}
        ready = [one for one in field if one.name in figures]
        for one in ready:
            _load(one, workers[one.name], cache, figures[one.name])
        for _ in range(rounds + 1):
            neighbours = Neighbours([os.getpid(), *(worker.pid for worker in workers.values())])
            for turn in range(TURNS):
                for one in ready:
                    if turn == 0:
                        _prompt(one, workers[one.name], figures[one.name])
                    _decode(workers[one.name], figures[one.name])
            others = max(others, neighbours.used())
    finally:
        for worker in workers.values():
            worker.close()
    for figure in figures.values():
        # the first round warms up, as the first loading does
        figure["rounds"] = {what: figure[what][TURNS if what in _TURNS else 1 :] for what in _MEASURED}
        for what, counted in figure["rounds"].items():
            figure[what] = statistics.median(counted) if counted else None
    bandwidths: list[float] = [limit for figure in figures.values() for limit in figure["rounds"]["bandwidth"]]
    return {
        **whence(),
        "rounds": rounds,
        "turns": TURNS,
        "read_bandwidth": statistics.median(bandwidths),
        "others": round(others, 3),
        "llama_cpp": llama_cpp_setup.VERSION,
        "figures": list(figures.values()),
        "missing": missing,
    }


#: What is measured of a contender; see `_load`, `_prompt` and `_decode`. Seconds for the first three, then tokens a
#: second; bytes a second for the bandwidth.
_MEASURED = ("bytes", "load", "cached", "prompt", "decode", "bandwidth", "batch")
#: What is measured in each turn of a round.
_TURNS = ("decode", "bandwidth")


def _load(one: Contender, worker: Asked, cache: Path, taken: dict[str, list[float]]) -> None:
    """Load it again, beside the one that is loaded: files are in the page cache, and nothing is left to import."""
    path = one.make(cache)
    kinds: dict[str, dict[str, Any]] = {"load": {}}
    if one.by == "woqfx":
        kinds["cached"] = {"pack_cache": str(cache / "runtime" / "packed")}
    for _ in range(LOADS + 1):
        taken["bytes"].append(_seconds_to_read(path))
        for what, options in kinds.items():
            backed_memory.touch()
            taken[what].append(worker.ask("load", name="again", path=str(path), options=options)["seconds"])
            worker.ask("forget", name="again")


def _seconds_to_read(path: Path) -> float:
    """The bytes of a model's files of weights, one piece after the other into one place."""
    piece = bytearray(_PIECE)
    start = time.perf_counter()
    for file in path.glob("*.safetensors") if path.is_dir() else [path]:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(piece):
                pass
    return time.perf_counter() - start


def _prompt(one: Contender, worker: Asked, taken: dict[str, list[float]]) -> None:
    """A prompt, and eight answers together."""
    taken["prompt"].append(PROMPT / worker.ask("prompt", name="model", count=PROMPT)["seconds"])
    if one.rows:
        seconds = worker.ask("batch", name="model", rows=ROWS, after=AFTER, count=NEW)["seconds"]
        taken["batch"].append(ROWS * NEW / seconds)


def _decode(worker: Asked, taken: dict[str, list[float]]) -> None:
    """One answer, between two looks at the bandwidth."""
    before = _bandwidth()
    taken["decode"].append(NEW / worker.ask("decode", name="model", after=AFTER, count=NEW)["seconds"])
    taken["bandwidth"].append((before + _bandwidth()) / 2)


def _bandwidth() -> float:
    return registry().backend("torch_cpu").roofline(THREADS).read_bandwidth


def bytes_per_token(path: Path) -> int:
    """What a token reads of a GGUF file's weights: all but the embedding, if that is not the head as well."""
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    return sum(sizes.values()) - ("output.weight" in sizes) * sizes["token_embd.weight"]


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
        python_of(one.by, arguments.cache)
        one.make(arguments.cache)
    if arguments.prepare:
        return
    result = measure(chosen, arguments.cache, arguments.rounds)
    page = markdown(result)
    publish(arguments.name, result, page)
    print(page)


if __name__ == "__main__":
    main()
