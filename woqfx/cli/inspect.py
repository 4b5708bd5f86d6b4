"""`woqfx inspect`: what a checkpoint holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from woqfx.cli import text
from woqfx.cli.folding import fold
from woqfx.cli.resuming import command_of
from woqfx.scheme import Scheme

if TYPE_CHECKING:
    from woqfx.inspection import Inspection, UnfinishedRun, WeightFacts


#: What to show of another program's config.
_THEIRS = ("format", "checkpoint_format", "version", "bits", "group_size", "sym", "desc_act", "bnb_4bit_quant_type")


@click.command(
    "inspect",
    short_help="Show what a checkpoint holds, and what runs it here.",
    epilog="""\b
Examples:
  woqfx inspect out/
  woqfx inspect out/ --all
  woqfx inspect out/ --verify && echo "every byte is as it was written"
  woqfx inspect out/ --json
""",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--backend", default="torch_cpu", show_default=True, metavar="NAME", help="Whose kernels to show.")
@click.option("--all", "every", is_flag=True, help="A line for each weight, instead of one for all that are alike.")
@click.option("--verify", is_flag=True, help="Read every file, and compare it with the SHA-256 in the manifest.")
@click.option("--json", "as_json", is_flag=True, help="All of it as one JSON object.")
def command(folder: Path, backend: str, every: bool, verify: bool, as_json: bool) -> None:
    """Show the scheme, error and size of each weight of a checkpoint, and which kernel runs it on this machine.

    The error is |W - W'| / |W| of the weight itself, measured when it was quantized. Of a run that was stopped, it
    shows how far it came and how to go on.
    """
    from woqfx.inspection import UnfinishedRun, inspect

    found = inspect(folder, backend)
    if verify:
        _verify(found)
    if as_json:
        click.echo(json.dumps(found.to_json() | ({"verified": True} if verify else {}), indent=1))
    elif isinstance(found, UnfinishedRun):
        _show_unfinished(found)
    else:
        _show(found, every, verify)


def _verify(found: Inspection | UnfinishedRun) -> None:
    from woqfx.disk.checkpoint import Checkpoint

    Checkpoint(found.path).verify()


def _show(found: Inspection, every: bool, verified: bool) -> None:
    out = text.console()
    rows = text.Grid(
        *("weight", "", "shape", "scheme", "error", "bits", "size", "kernel"),
        numbers=("", "error", "bits", "size"),
        expendable=("kernel", "shape", "scheme"),
    )
    alike = (lambda weight: weight.name) if every else _likeness
    for group in fold(found.weights, lambda weight: weight.name, alike):
        one = group.members[0]
        rows.add(
            text.layer(group.name),
            group.times,
            text.shape(one.shape),
            text.scheme(one.scheme),
            _errors(group.members),
            f"{one.bits_per_weight:.2f}",
            text.size(sum(weight.nbytes for weight in group.members)),
            one.support.kernel if one.support.ok else "none",
        )
    rows.show(out)
    rest = found.nbytes - found.quantized_bytes
    lines = {
        "quantized": f"{len(found.weights)} layers, at {found.bits_per_weight:.2f} bits per weight, "
        f"{text.size(found.quantized_bytes)}",
        "kept": f"{found.kept} tensors and the small files, {text.size(rest)}",
        "total": text.size(found.nbytes),
        "made by": _request(found.request),
        "runs by": _kernels(found),
    }
    if found.notes:
        lines["to know"] = "\n".join(text.notes(found.notes))
    if verified:
        lines["verified"] = "every file is as the manifest describes it"
    text.facts(out, lines)


def _likeness(weight: WeightFacts) -> Any:
    return weight.shape, weight.scheme, weight.support


def _errors(weights: tuple[WeightFacts, ...]) -> str:
    known = [weight.error for weight in weights if weight.error is not None]
    if not known:
        return "unknown"
    low, high = f"{min(known):.4f}", f"{max(known):.4f}"
    return low if low == high else f"{low} to {high}"


def _kernels(found: Inspection) -> str:
    answers = {weight.support: None for weight in found.weights}
    lines = []
    for support in answers:
        if support.ok:
            lines.append(f"{found.backend}, kernel {support.kernel}: {support.reason}")
        else:
            lines.append(f"{found.backend} cannot: {support.reason}; {support.remedy}")
    return "\n".join(lines)


def _request(request: Mapping[str, Any]) -> str:
    if not request:
        return "unknown"
    if isinstance(theirs := request.get("quantization_config"), dict):
        stated = [f"{key} {theirs[key]}" for key in _THEIRS if isinstance(theirs.get(key), int | str)]
        return f"{theirs.get('quant_method', 'another program')}: {', '.join(stated)}"
    options = [f"{key}={value}" for key, value in request.get("options", {}).items()]
    rules = [f"rule {rule}" for rule in request.get("rules", ())]
    scheme = text.scheme(Scheme.from_json(request["scheme"])) if "scheme" in request else "?"
    return ", ".join([str(request.get("algorithm")), *options, scheme, *rules])


def _show_unfinished(run: UnfinishedRun) -> None:
    sizes = f"{text.size(run.safe_bytes)} of about {text.size(run.expected_bytes)}"
    text.facts(
        text.console(),
        {
            "unfinished": f"{run.path} holds a run that was stopped; it is not a checkpoint yet",
            "safe": f"{run.tensors} tensors, {sizes}" if run.steps is None else f"{run.steps} steps",
            "go on": command_of(run),
            "or afresh": "the same with other flags, and --overwrite",
        },
    )
