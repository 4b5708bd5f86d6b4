"""How well calibration data stand for real prose: their second moments, and what a model calibrated on them is worth.

    python -m benchmarks.calibration [--samples 8] [--tokens 2048] [--algorithm gptq]

SmolLM2-135M-Instruct, rescaled (`benchmarks.rescale`), in float32; int4_fullrange, groups of 32. It is measured on
technical prose (`benchmarks.prose`), on a part that nothing is calibrated on. `prose` itself, another part of it, shows
the best that calibration data could be, and random tokens what comes of data that are no text. Writes
`results/calibration.json` and `.md` after each, and puts the latter into `docs/calibration.md`. Ten minutes of a core.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import woqfx
from benchmarks.cache import default_cache
from benchmarks.prose import prose
from benchmarks.publish import DOCS, publish
from benchmarks.rescale import rescale
from woqfx.calibration import CalibrationRequest, prepare_calibration
from woqfx.cpu import this_cpu
from woqfx.evaluate import perplexity
from woqfx.original import load_original
from woqfx.source import open_source

LENGTH = 512
KINDS = ("q_proj", "o_proj", "gate_proj", "down_proj")  # those whose inputs differ


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2048, help="to measure on")
    parser.add_argument("--algorithm", default="gptq")
    arguments = parser.parse_args()
    from examples.demo import smollm2

    source = open_source(smollm2())
    tokenizer = woqfx.Subject(source).tokenizer
    words = torch.tensor(tokenizer(prose(default_cache()), verbose=False).input_ids)
    measured = words[: arguments.tokens]
    sets = {"prose": words[arguments.tokens :][: arguments.samples * LENGTH].view(-1, LENGTH)}
    for name in ("python-docs", "self"):
        request = CalibrationRequest(name, arguments.samples, LENGTH, tokenizer=tokenizer)
        sets[name] = torch.cat(prepare_calibration(request, source).batches)
    draw = torch.Generator().manual_seed(0)
    sets["random tokens"] = torch.randint(len(tokenizer), (arguments.samples, LENGTH), generator=draw)

    model = load_original(smollm2())
    rescale(model)
    result: dict[str, Any] = {
        **vars(arguments),
        "processor": this_cpu().model,
        "torch": torch.__version__,
        "float": perplexity(model, measured, LENGTH).value,
        "nearest": _quantized(model, measured, "rtn", None),
        "sets": {},
    }
    wanted = moments(model, measured.view(-1, LENGTH))
    for name, rows in sets.items():
        found = moments(model, rows)
        result["sets"][name] = {
            "likeness": {kind: likeness_of(wanted, found, kind) for kind in KINDS},
            "own": perplexity(model, rows.flatten(), LENGTH).value,
            "after": _quantized(model, measured, arguments.algorithm, rows),
        }
        print(name, json.dumps(result["sets"][name]), flush=True)
        publish("calibration", result, page(result), DOCS / "calibration.md")


def moments(model: nn.Module, rows: Tensor) -> dict[str, Tensor]:
    """The second moments [K, K] of the inputs of each linear layer of `KINDS`, by name, for tokens int64 [B, T]."""
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    hooks = []
    for name, module in model.named_modules():
        if name.endswith(KINDS):

            def see(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                flat = inputs[0].flatten(0, -2)
                sums[name] = sums[name] + flat.T @ flat

            hooks.append(module.register_forward_pre_hook(see))
    with torch.no_grad():
        for row in rows:
            model(row.unsqueeze(0), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: total / rows.numel() for name, total in sums.items()}


def likeness_of(one: dict[str, Tensor], other: dict[str, Tensor], kind: str) -> float:
    """The mean over the layers of a kind of the cosine between two matrices of second moments: 1 if they are alike."""
    cosines = [
        torch.nn.functional.cosine_similarity(one[name].flatten(), other[name].flatten(), dim=0)
        for name in one
        if name.endswith(kind)
    ]
    return float(torch.stack(cosines).mean())


def _quantized(model: nn.Module, measured: Tensor, algorithm: str, rows: Tensor | None) -> float:
    """The perplexity on `measured` of a copy that was calibrated on `rows`."""
    data = {} if rows is None else {"calibration": rows, "samples": len(rows), "seq_len": LENGTH}
    run = woqfx.quantize(copy.deepcopy(model), algorithm=algorithm, dtype="int4_fullrange", progress="none", **data)
    return perplexity(run, measured, LENGTH).value


def page(result: Mapping[str, Any]) -> str:
    """The table, in Markdown."""
    lines = [
        "Generated by `python -m benchmarks.calibration`; do not edit.",
        "",
        "SmolLM2-135M-Instruct with rescaled channels, int4_fullrange in groups of 32 by "
        f"{result['algorithm']}, calibrated on {result['samples']} x {LENGTH} tokens; perplexity on "
        f"{result['tokens']} tokens of technical prose (Django's documentation), {result['float']:.2f} in float32 and "
        f"{result['nearest']:.2f} rounded to nearest, without data. Likeness is the cosine between the second moments "
        "of layers' inputs and those on the prose that is measured on, 1 if they are alike. "
        f"Processor: {result['processor']}; PyTorch {result['torch']}.",
        "",
        f"| calibrated on | its own perplexity | {' | '.join(f'likeness, {kind}' for kind in KINDS)} | on prose |",
        f"|---|--:|{'--:|' * len(KINDS)}--:|",
    ]
    for name, one in result["sets"].items():
        likeness = " | ".join(f"{one['likeness'][kind]:.2f}" for kind in KINDS)
        lines.append(f"| {name} | {one['own']:.1f} | {likeness} | {one['after']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
