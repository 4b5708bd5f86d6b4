"""Load 1.1 billion weights in 4 bits: from the checkpoint, and from a pack cache, beside just reading the bytes.

    python -m benchmarks.loading_1b [--runs 5] [--name NAME]

Makes the model (2.2 GB) and its checkpoint in the cache folder. Each figure is of a process of its own, forked from one
that has imported everything; two threads; medians. "weights" is reading and packing alone; "model" is `woqfx.load`, of
each backend. "From the disk" the kernel was asked to forget the files first. Writes `results/NAME.json` and
`results/NAME.md`, and puts the latter into `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import backed_memory
from benchmarks.cache import default_cache
from benchmarks.machine import telling_features
from benchmarks.neighbours import Neighbours
from benchmarks.publish import name_argument, publish

THREADS = 2
_PIECE = 1 << 24
_QUIET = 0.1  # processors that others used
_MODULES = (
    "transformers.models.llama.modeling_llama",
    "woqfx.api",
    "woqfx.disk.checkpoint",
    "woqfx.loading",
    "woqfx_llm_runtime.loading",
    "woqfx_native.encode",
    "woqfx_torch_cpu.native",
)


def read_bytes(checkpoint: Path, cache: Path) -> None:
    """Every byte of the checkpoint's weight files, one piece after the other into one place."""
    piece = bytearray(_PIECE)
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass


def load_weights(checkpoint: Path, cache: Path, *, cached: bool = False) -> None:
    """Read and pack the quantized weights, or read them from the pack cache."""
    from woqfx import registry
    from woqfx.ahead import read_ahead
    from woqfx.disk.checkpoint import Checkpoint

    stored, backend = Checkpoint(checkpoint), registry().backend("torch_cpu")
    options = backend.Options(pack_cache=str(cache) if cached else "")
    held = list(read_ahead(stored.weights, backend.packer(stored, options), THREADS))
    assert len(held) == len(stored.weights)


def load_model(checkpoint: Path, cache: Path, *, backend: str = "torch_cpu", cached: bool = False) -> None:
    """`woqfx.load`."""
    import woqfx

    woqfx.load(checkpoint, backend=backend, backend_options={"pack_cache": str(cache)} if cached else None)


JOBS: dict[str, Callable[[Path, Path], None]] = {
    "bytes": read_bytes,
    "weights": load_weights,
    "weights, cached": partial(load_weights, cached=True),
    "model, torch_cpu": load_model,
    "model, torch_cpu, cached": partial(load_model, cached=True),
    "model, llm_runtime": partial(load_model, backend="llm_runtime"),
    "model, llm_runtime, cached": partial(load_model, backend="llm_runtime", cached=True),
}
#: What is done from the disk, too.
FROM_DISK = ("bytes", "model, llm_runtime")
_DISK = ", from the disk"


def import_everything() -> None:
    """What loading would import. Nothing runs in threads here: children are forked from this process."""
    for module in _MODULES:
        importlib.import_module(module)
    import woqfx

    plugins = woqfx.registry()
    for name in ("torch_cpu", "llm_runtime"):
        plugins.backend(name)
    plugins.dtype("int4_clip")
    plugins.compute_dtype("fp32")


def timed(job: str, checkpoint: Path, cache: Path) -> dict[str, float]:
    """Do one job in a process of its own; its seconds, and its processor's."""
    processes = multiprocessing.get_context("fork")
    receiving, sending = processes.Pipe(duplex=False)
    child = processes.Process(target=_child, args=(job, checkpoint, cache, sending))
    child.start()
    sending.close()
    try:
        taken: dict[str, float] = receiving.recv()
    except EOFError:
        raise SystemExit(f"{job} failed, as said above") from None
    finally:
        child.join()
    return taken


def _child(job: str, checkpoint: Path, cache: Path, answer: Connection) -> None:
    import torch

    torch.set_num_threads(THREADS)
    began, busy = time.perf_counter(), time.process_time()
    JOBS[job](checkpoint, cache)
    answer.send({"seconds": time.perf_counter() - began, "processor": time.process_time() - busy})


def forget(folder: Path) -> None:
    """Ask the kernel to drop the files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(checkpoint: Path, cache: Path, runs: int) -> dict[str, list[dict[str, float]]]:
    """All jobs in turn, once to warm up (which fills the pack cache) and `runs` times."""
    jobs = [(job, job, False) for job in JOBS] + [(job + _DISK, job, True) for job in FROM_DISK]
    taken: dict[str, list[dict[str, float]]] = {name: [] for name, _, _ in jobs}
    for number in range(runs + 1):
        for name, job, cold in jobs:
            if cold:
                forget(checkpoint)
            backed_memory.touch()
            one = timed(job, checkpoint, cache)
            if number:
                taken[name].append(one)
    return taken


def page(result: Mapping[str, Any]) -> str:
    """The medians, and how they compare with reading."""
    runs = result["runs"]
    middle = {
        job: {key: statistics.median(one[key] for one in each) for key in ("seconds", "processor")}
        for job, each in runs.items()
    }

    def ratio(job: str) -> float:
        reading = "bytes" + _DISK if job.endswith(_DISK) else "bytes"
        times: float = middle[job]["seconds"] / middle[reading]["seconds"]
        return times

    lines = [
        "Generated by `python -m benchmarks.loading_1b`; do not edit.",
        "",
        f"Machine: {result['machine']}, {THREADS} threads. {result['date']}, medians of {len(runs['bytes'])} runs, "
        "files in the page cache if not said otherwise.",
        "",
        f"Others kept {result['neighbours']:.2f} processors busy meanwhile: times are longer by that, processor time "
        "is not."
        if result["neighbours"] > _QUIET
        else "The machine was quiet.",
        "",
        "| | time | quickest | processor time | times reading the bytes |",
        "|---|--:|--:|--:|--:|",
    ]
    for job, one in middle.items():
        least = min(each["seconds"] for each in runs[job])
        times = f"{one['seconds']:.2f} s | {least:.2f} s | {one['processor']:.2f} s"
        lines.append(f"| {job} | {times} | {ratio(job):.2f} |")
    cold, cached = "model, llm_runtime" + _DISK, "model, llm_runtime, cached"
    lines += [
        "",
        _verdict("a model from the disk in 1.5 times what reading takes", ratio(cold) <= 1.5, f"{ratio(cold):.2f}"),
        _verdict("weights from the page cache in 1.5 times", ratio("weights") <= 1.5, f"{ratio('weights'):.2f}"),
        *(
            _verdict(f"{job} in 0.3 s", middle[job]["seconds"] <= 0.3, f"{middle[job]['seconds']:.2f} s")
            for job in ("weights, cached", cached)
        ),
    ]
    return "\n".join(lines) + "\n"


def _verdict(goal: str, met: bool, measured: str) -> str:
    return f"- Goal: {goal}: {'met' if met else '**missed**'}, {measured}."


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description="Load 1.1B weights from a checkpoint and from a pack cache.")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="for models (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="of each, besides one to warm up (%(default)s)")
    name_argument(parser, "loading_1b")
    arguments = parser.parse_args()
    checkpoint, packs = arguments.cache / "llama-1.1b-int4", arguments.cache / "llama-1.1b-packs"
    model = arguments.cache / "llama-1.1b"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.make_model", str(arguments.cache)], check=True, stdout=subprocess.DEVNULL
    )
    if not (checkpoint / "woqfx.json").is_file():
        program = str(Path(sys.executable).with_name("woqfx"))
        kind = ["--dtype", "int4_clip", "--group-size", "32", "--progress", "none"]
        subprocess.run([program, "quantize", str(model), *kind, "--out", str(checkpoint)], check=True)
    shutil.rmtree(packs, ignore_errors=True)
    import_everything()
    neighbours, began = Neighbours([os.getpid()]), time.monotonic()
    runs = measure(checkpoint, packs, arguments.runs)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = children.ru_utime + children.ru_stime
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": telling_features(),
        "neighbours": round(max(neighbours.used() - own / (time.monotonic() - began), 0.0), 2),
        "runs": runs,
    }
    publish(arguments.name, result, page(result))
    print(page(result))


if __name__ == "__main__":
    main()
