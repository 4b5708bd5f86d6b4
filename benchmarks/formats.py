"""Whether the software that a format is for reads what woqfx writes: `python -m benchmarks.formats [CACHE]`.

SmolLM2-135M-Instruct is quantized, written in each format, loaded by that format's own software, and asked the same:
the logits after each prompt, and the tokens that follow if always the likeliest is taken. They are compared with what
woqfx computes of the checkpoint that was written from: in float32, or, where llama.cpp reads what was quantized here,
with inputs rounded to 8 bits as it rounds them. Each reader runs in a process of its own; llama.cpp in an environment
of its own, which is made if it is not there. The page is printed as Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import woqfx
from benchmarks.cache import default_cache
from benchmarks.peers import llama_cpp_setup
from benchmarks.peers.environment import environment
from examples.demo import smollm2
from woqfx.cpu import this_cpu
from woqfx.source.tokenizer import load_tokenizer
from woqfx.transcoding import convert

PROMPTS = ("The capital of France is", "def fibonacci(n):", "Once upon a time", "Water boils at 100")
TOKENS = 12

#: Its build needs torch to be there first.
_GPTQMODEL = (
    ("torch==2.13.0", "transformers==5.23.0", "accelerate", "safetensors", "setuptools", "wheel"),
    ("--no-build-isolation", "gptqmodel==7.7.0"),
)
_ABOUT = """\
transformers computes in float32 what compressed-tensors unpacks; bitsandbytes rounds products to bfloat16. llama.cpp
rounds inputs to 8 bits and keys and values to fp16: its logits are a few percent away, whoever wrote the file, and
where the two likeliest tokens are that near to each other, rounding decides.
"""
_PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Case:
    """A format, what is written in it, and who reads it; without a scheme, the file's own blocks are carried on."""

    form: str
    what: str
    reader: str
    scheme: Mapping[str, Any] | None


_KEEP = {"rules": ["model.embed_tokens=keep"], "scale_dtype": "fp32"}
# llama.cpp rounds inputs to 8 bits in groups of 32; so does woqfx if it is asked to.
_ROUNDED = {"compute_dtype": "int8"}
_NF4 = {"dtype": "nf4", "group_size": 64, **_KEEP}
CASES = (
    Case("gguf", "Q4_1, as it was read", "llama.cpp", None),
    Case("compressed-tensors", "int4, groups of 64", "transformers", {"dtype": "int4_clip", "group_size": 64, **_KEEP}),
    Case("awq", "int4 with zero points, groups of 64", "GPTQModel", {"symmetric": False, "group_size": 64}),
    Case("gptq", "int4, groups of 64", "GPTQModel", {"group_size": 64}),
    Case("gptq", "int4 with zero points (v2)", "GPTQModel", {"symmetric": False, "group_size": 64}),
    Case("bitsandbytes", "nf4", "transformers", _NF4),
    Case("gguf", "Q4_0", "llama.cpp", {"dtype": "int4_fullrange", **_ROUNDED}),
    Case("bitsandbytes", "nf4, nested scales", "transformers", {**_NF4, "double_quant": True}),
    Case("gguf", "Q8_0", "llama.cpp", {"dtype": "int8", **_ROUNDED}),
    Case("compressed-tensors", "int8, rows", "transformers", {"dtype": "int8", "group_size": -1, **_KEEP}),
    Case("gguf", "IQ4_NL", "llama.cpp", {"dtype": "iq4_nl", **_ROUNDED}),
)


@dataclass(frozen=True)
class Answer:
    """What a model said: tokens [prompts, TOKENS], and the logits [prompts, vocabulary] before the first of them."""

    tokens: NDArray[Any]
    logits: NDArray[Any]


def reader_command(reader: str, cache: Path) -> list[str]:
    """How to start a reader."""
    if reader == "llama.cpp":
        return [str(llama_cpp_setup.environment(cache)), str(_PEERS / "read_llama_cpp.py")]
    if reader == "GPTQModel":
        return [str(environment(cache / "gptqmodel", *_GPTQMODEL)), str(_PEERS / "read_gptqmodel.py")]
    return [sys.executable, str(_PEERS / "read_transformers.py")]


def measure(case: Case, cache: Path, folder: Path) -> tuple[Answer, Answer]:
    """What woqfx says of a checkpoint, and what the reader says of it in the format."""
    ours, theirs = folder / "ours", folder / "theirs"
    if case.scheme is None:
        convert(smollm2(), ours, progress="none")
    else:
        woqfx.quantize(smollm2(), out=ours, progress="none", **case.scheme)
    convert(ours, theirs, to=case.form, progress="none")
    tokenizer = load_tokenizer(smollm2())
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    asked, answered = folder / "prompts.json", folder / "answers.npz"
    asked.write_text(json.dumps({"prompts": prompts, "tokens": TOKENS}))
    model = next(iter(theirs.glob("*.gguf")), theirs)
    subprocess.run([*reader_command(case.reader, cache), str(model), str(asked), str(answered)], check=True)
    with np.load(answered) as found:
        return _answer(woqfx.load(ours), prompts), Answer(found["tokens"], found["logits"])


def _answer(model: Any, prompts: list[list[int]]) -> Answer:
    tokens, logits = [], []
    for ids in prompts:
        prompt = torch.tensor([ids])
        with torch.no_grad():
            logits.append(model(prompt).logits[0, -1].numpy())
        made = model.generate(prompt, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
        tokens.append(made[0, len(ids) :].tolist())
    return Answer(np.array(tokens), np.stack(logits))


def row(case: Case, ours: Answer, theirs: Answer) -> str:
    """One line of the table. Logits are shifted to a mean of 0: a constant means nothing."""
    same = ours.tokens == theirs.tokens
    before = int(np.cumprod(same, axis=1).sum())
    first, second = (one.logits - one.logits.mean(axis=1, keepdims=True) for one in (ours, theirs))
    apart = np.abs(first - second).max() / np.abs(first).max()
    return f"| {case.form} | {case.what} | {case.reader} | {apart:.1e} | {before} of {same.size} |"


def main() -> None:
    """Measure all cases and print the page."""
    parser = argparse.ArgumentParser(description="Have other software read what woqfx writes.")
    parser.add_argument("cache", nargs="?", type=Path, default=default_cache(), help="where (default: %(default)s)")
    cache = parser.parse_args().cache
    print("Generated by `python -m benchmarks.formats`; do not edit.\n")
    print(f"SmolLM2-135M-Instruct, {len(PROMPTS)} prompts, {TOKENS} tokens each. Processor: {this_cpu().model}.\n")
    print(_ABOUT)
    print("| format | weights | read by | logits apart, of the largest | tokens alike before the first that differs |")
    print("|---|---|---|--:|--:|")
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="woqfx-formats-") as folder:
            print(row(case, *measure(case, cache, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
