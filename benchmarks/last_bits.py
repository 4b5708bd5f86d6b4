"""How far a last bit carries: python -m benchmarks.last_bits

Two correct implementations add the same numbers in different orders, so their floats differ in the last bits. Where
activations are rounded, a last bit decides now and then which way, and a rounded activation then differs by a whole
step. This measures what that amounts to in SmolLM2-135M-Instruct (int4_clip in groups of 32), for each compute dtype:
the divergence of backend torch_cpu's next-token distributions from its own, when each number of the embedding is moved
by at most one unit in its last place; and that of the LLM runtime's from them. An implementation that is right cannot
be expected nearer than the first.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import woqfx
from benchmarks.publish import name_argument, publish
from examples.demo import smollm2
from woqfx.cli.models import load_tokenizer
from woqfx.evaluate import compare

COMPUTE, SEEDS = ("fp32", "bf16", "int8"), 3
OPTIONS = {"kv": "fp32", "head": "keep"}


def moved_by_a_last_bit(embedding: nn.Embedding, seed: int) -> Any:
    """A hook after which each number of the embedding is moved to a neighbour, or stays; `.remove()` ends it."""

    def move(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        direction = torch.randint(-1, 2, output.shape, generator=torch.Generator().manual_seed(seed))
        return torch.nextafter(output, output + direction)

    return embedding.register_forward_hook(move)


def measure(folder: Path, tokens: int) -> dict[str, dict[str, float]]:
    """For each compute dtype the divergences, in nats per token."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = torch.tensor(load_tokenizer(str(smollm2()))(text).input_ids[:tokens])
    found = dict[str, dict[str, float]]()
    for compute in COMPUTE:
        out = folder / compute
        woqfx.quantize(smollm2(), dtype="int4_clip", compute_dtype=compute, out=out, progress="none")
        model: Any = woqfx.load(out)
        twin: Any = woqfx.load(out)
        itself = []
        for seed in range(SEEDS):
            hook = moved_by_a_last_bit(twin.get_input_embeddings(), seed)
            itself.append(compare(twin, model, ids, tokens).divergence)
            hook.remove()
        runtime: Any = woqfx.load(out, backend="llm_runtime", backend_options=OPTIONS)
        found[compute] = {"itself": max(itself), "runtime": compare(runtime, model, ids, tokens).divergence}
    return found


def page(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "Made by `python -m benchmarks.last_bits`; do not edit.",
        "",
        f"SmolLM2-135M-Instruct, int4_clip g32, {result['tokens']} tokens of Python's documentation. Divergence from "
        "backend torch_cpu's next-token distributions, nats per token.",
        "",
        f"| compute dtype | torch_cpu, embedding moved by a last bit (largest of {SEEDS}) | LLM runtime |",
        "|---|--:|--:|",
    ]
    lines += [f"| {name} | {one['itself']:.1e} | {one['runtime']:.1e} |" for name, one in result["divergence"].items()]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256, help="that are predicted (%(default)s)")
    name_argument(parser, "last_bits")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = {"tokens": given.tokens, "divergence": measure(Path(folder), given.tokens)}
    publish(given.name, result, page(result))
    print(page(result))


if __name__ == "__main__":
    main()
