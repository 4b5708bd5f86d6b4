"""What is left of a real model's quality at 4 bits, by every algorithm and by peers, and what that took.

    python -m benchmarks.quality [--only PATTERN] [--tokens 32768] [--threads 2]

SmolLM2-135M-Instruct with rescaled channels (`benchmarks.rescale`) in float32, groups of 32 (or
128 where a row says so), fp16 scales, output head kept; calibrated on 32 x 512 tokens of Python's help, measured on
paragraphs of Django's documentation. Each result is kept in `results/quality.json` as soon as it is there, and those
that are there are not made again (`--again`), but what failed is; the table is `results/quality.md`. Peers have
environments of their own in the cache folder, and get the same tokens.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cache import default_cache
from benchmarks.peers import llama_cpp_setup
from benchmarks.peers.environment import environment
from benchmarks.process import run
from benchmarks.publish import publish, read
from woqfx.cpu import this_cpu

PEERS = Path(__file__).parent / "peers"
#: A load average this much above our own threads says that others were at work.
_QUIET = 0.5


@dataclass(frozen=True)
class Job:
    """One row of the table: a command that writes `out`, in the folder of the benchmark, and its bits per weight."""

    name: str
    out: str
    command: Callable[[Path], Sequence[str]]
    bits: float = 4.5


def ours(dtype: str, algorithm: str, *flags: str, group_size: int = 32) -> Job:
    """woqfx's own command."""

    def command(folder: Path) -> Sequence[str]:
        woqfx = str(Path(sys.executable).with_name("woqfx"))
        request = ["--algorithm", algorithm, "--dtype", dtype, "--group-size", str(group_size), *flags]
        data = [] if algorithm == "rtn" else ["--samples", "32", "--seq-len", "512"]
        out = ["--out", str(folder / "out"), "--progress", "none"]
        return [woqfx, "quantize", str(folder / "model"), *request, *data, *out]

    groups = [] if group_size == 32 else [f"g{group_size}"]
    name = " ".join([dtype, *groups, algorithm, *(flag.lstrip("-") for flag in flags)])
    return Job(name, "out", command, 4 + 16 / group_size)


def tuned(dtype: str, algorithm: str, *flags: str) -> Job:
    """The same, and what came of it tuned by `woqfx tune`."""

    def command(folder: Path) -> Sequence[str]:
        return [sys.executable, "-m", "benchmarks.quality_tuned", str(folder), dtype, algorithm, *flags]

    return Job(" ".join([f"{dtype} {algorithm}, tuned", *(flag.lstrip("-") for flag in flags)]), "out", command)


def compressor(algorithm: str) -> Job:
    """Intel Neural Compressor."""

    def command(folder: Path) -> Sequence[str]:
        packages = ["torch==2.13.0", "neural-compressor-pt==3.10", "transformers>=4", "accelerate"]
        python = environment(folder.parent / "inc", packages)
        inputs = [str(folder / "model"), str(folder / "tokens.safetensors"), str(folder / "peer")]
        return [str(python), str(PEERS / "inc_quantize.py"), *inputs, "--algorithm", algorithm]

    return Job(f"Intel Neural Compressor 3.10 {algorithm}", "peer", command)


def auto_round(iterations: int) -> Job:
    """auto-round."""

    def command(folder: Path) -> Sequence[str]:
        python = environment(folder.parent / "auto_round", ["torch==2.13.0", "auto-round==0.16.1"])
        inputs = [str(folder / "model"), str(folder / "tokens.safetensors"), str(folder / "peer")]
        return [str(python), str(PEERS / "auto_round_quantize.py"), *inputs, "--iterations", str(iterations)]

    return Job(f"auto-round 0.16.1, {iterations} iterations", "peer", command)


def llama_cpp(kind: str, bits: float) -> Job:
    """llama.cpp with an importance matrix. Of its K types, rows that 256 does not divide take more bits."""

    def command(folder: Path) -> Sequence[str]:
        python = llama_cpp_setup.environment(folder.parent)
        inputs = [str(folder / name) for name in ("model.gguf", "importance.npz", "peer.gguf")]
        return [str(python), str(PEERS / "llama_cpp_importance.py"), *inputs, "--type", kind]

    return Job(f"llama.cpp {kind}, importance matrix", "peer.gguf", command, bits)


JOBS = (
    ours("int4_clip", "rtn"),
    *(
        ours(dtype, *request)
        for dtype in ("int4_fullrange", "nf4", "fp4_e2m1")
        for request in (
            ("rtn",),
            ("awq", "--no-scale"),
            ("awq",),
            ("gptq", "--no-token-weights"),
            ("gptq",),
            ("teq",),
            ("awq+gptq",),
            ("teq+gptq",),
            ("best",),
        )
    ),
    *(
        ours(dtype, algorithm, group_size=128)
        for dtype in ("int4_fullrange", "nf4")
        for algorithm in ("rtn", "gptq", "best")
    ),
    *(tuned("int4_fullrange", algorithm, "--products", "bf16") for algorithm in ("rtn", "awq", "awq+gptq", "best")),
    *(compressor(algorithm) for algorithm in ("rtn", "awq", "gptq", "teq")),
    *(llama_cpp(*kind) for kind in (("Q4_0", 4.5), ("IQ4_NL", 4.53), ("Q4_K_M", 5.53))),
    auto_round(50),
    auto_round(200),
)


def measure(job: Job, folder: Path, tokens: int, threads: int) -> dict[str, Any]:
    """Run a job, and measure what it made."""
    out = folder / job.out
    _remove(out)
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    taken = run(job.command(folder), variables)
    command = [sys.executable, "-m", "benchmarks.quality_measure", str(folder), str(out), f"--tokens={tokens}"]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    if done.returncode:
        raise RuntimeError(f"{out} was made and cannot be measured:\n{done.stderr.rstrip()}")
    _remove(out)
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    processor = taken.user_seconds + taken.system_seconds
    spent = {"seconds": taken.seconds, "processor_seconds": processor, "peak_bytes": taken.peak_bytes}
    return {**facts, **spent, "threads": threads, "load": os.getloadavg()[0], "processor": this_cpu().model}


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, in Markdown."""
    lines = [
        "Generated by `python -m benchmarks.quality`; do not edit.",
        "",
        *(line for setting in dict.fromkeys(map(_setting, results.values())) if setting for line in (setting, "")),
        *_loaded(results.values()),
        "| | bits | perplexity | against float | KL to float | time | processor time | peak memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for job in JOBS:
        if (found := results.get(job.name)) is None:
            continue
        if "failed" in found:
            lines.append(f"| {job.name} | | failed: {found['failed']} | | | | | |")
            continue
        ratio = found["perplexity"] / found["float"]
        lines.append(
            f"| {job.name} | {job.bits} | {found['perplexity']:.2f} | {ratio:.4f} | {found['divergence']:.4f} "
            f"| {found['seconds']:.0f} s | {found['processor_seconds']:.0f} s | {found['peak_bytes'] / 1e9:.2f} GB |"
        )
    return "\n".join(lines) + "\n"


def _setting(found: Mapping[str, Any]) -> str:
    """On what a row was measured: one sentence, the same for rows that compare."""
    if "failed" in found:
        return ""
    float_model = f"{found['float']:.2f} in float32"
    return f"{found['processor']}, threads: {found['threads']}; {found['tokens']} tokens, perplexity {float_model}."


def _loaded(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """A warning if others were at work."""
    most = max((one["load"] - one["threads"] for one in found if "failed" not in one), default=0)
    if most < _QUIET:
        return []
    return [f"The machine was **not quiet**: load up to {most:.1f} beside what is measured; times are too long.", ""]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="for models and peers (%(default)s)")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="rows whose name matches (%(default)s)")
    parser.add_argument("--again", action="store_true", help="also those that are there already")
    parser.add_argument("--tokens", type=int, default=32768, help="of the prose (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    arguments = parser.parse_args()
    folder = arguments.cache / "quality"
    subprocess.run([sys.executable, "-m", "benchmarks.quality_model", str(folder)], check=True)
    for job in JOBS:
        there = "perplexity" in read("quality").get(job.name, {}) and not arguments.again
        if there or not fnmatch.fnmatchcase(job.name, arguments.only):
            continue
        try:
            found = measure(job, folder, arguments.tokens, arguments.threads)
        except RuntimeError as error:
            found = {"failed": str(error).splitlines()[-1]}
        results = read("quality") | {job.name: found}  # read again: others may have been measured meanwhile
        print(job.name, json.dumps(found), flush=True)
        publish("quality", results, page(results))
    print(page(read("quality")))


if __name__ == "__main__":
    main()
