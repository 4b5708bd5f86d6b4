"""`woqfx plan`: what would happen to each layer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from woqfx.cli import text
from woqfx.cli.failures import warn
from woqfx.cli.folding import fold
from woqfx.cli.request import READING, RequestCommand, planned

if TYPE_CHECKING:
    from woqfx.planned import LayerPlan, Plan


@click.command(
    "plan",
    cls=RequestCommand,
    short_help="Show what would happen to each layer, and whether it can.",
    epilog="""\b
Examples:
  woqfx plan path/to/model --dtype nf4
  woqfx plan model.gguf --rule "*.down_proj=int8" --rule "model.layers.0.*=keep"
  woqfx plan organisation/name --group-size 128 --double-quant --json
""",
)
@click.argument("model")
@click.option("--all", "every", is_flag=True, help="A line for each layer, instead of one for all that are alike.")
@click.option("--json", "as_json", is_flag=True, help="The whole plan as one JSON object.")
def command(model: str, every: bool, as_json: bool, **request: Any) -> None:
    """Show what `woqfx quantize` would do to each layer of MODEL, with the same flags.

    MODEL is a folder, a .gguf file, or a name on the Hugging Face Hub. Headers are read and no weights. Everything that
    stands in the way is listed at once; the exit code is then 2.
    """
    from woqfx.source import open_source

    with text.waiting(READING):
        source = open_source(model)
    plan = planned(source, request)
    if as_json:
        click.echo(json.dumps(plan.to_json(), indent=1))
    else:
        show(plan, every)
    if plan.problems and not as_json:
        plan.check()
    if plan.problems:
        raise click.exceptions.Exit(2)


def show(plan: Plan, every: bool = False) -> None:
    """Print a plan: a line for all layers that are alike, or for each."""
    out = text.console()
    rows = text.Grid(
        *("layer", "", "shape", "scheme", "why", "kernel", "bits", "size"),
        numbers=("", "bits", "size"),
        expendable=("kernel", "shape", "why"),
    )
    alike = (lambda layer: layer.layer.name) if every else _likeness
    for group in fold(plan.layers, lambda layer: layer.layer.name, alike):
        one = group.members[0]
        rows.add(
            group.name + _tied(one),
            group.times,
            text.shape(one.layer.shape),
            text.scheme(one.scheme) if one.scheme else f"kept as {_name(one)}",
            _why(one),
            *_outcome(group.members),
            style="" if one.scheme else "dim",
        )
    rows.show(out)
    if plan.problems:
        return
    chosen = plan.quantized.values()
    weights, all_weights = sum(layer.weights for layer in chosen), sum(layer.weights for layer in plan.layers)
    text.facts(
        out,
        {
            "quantized": f"{len(chosen)} of {len(plan.layers)} layers, {text.count(weights)} of their "
            f"{text.count(all_weights)} weights, at {plan.bits_per_weight:.2f} bits per weight",
            "size": f"{text.size(plan.source_bytes)} -> {text.size(plan.nbytes)}",
            "memory": f"{text.size(plan.memory)} while quantizing",
            "time": f"about {text.duration(plan.seconds)} on this machine",
        },
    )
    for warning in plan.warnings:
        warn(warning)


def _outcome(layers: tuple[LayerPlan, ...]) -> tuple[str, str, str]:
    """Kernel, bits and size; unknown where the request cannot be carried out."""
    one = layers[0]
    if one.scheme is not None and one.support is None:
        return "?", "?", "?"
    kernel = one.support.kernel if one.support else ""
    return kernel, f"{one.bits_per_weight:.2f}", text.size(sum(layer.nbytes for layer in layers))


def _likeness(plan: LayerPlan) -> Any:
    kernel = plan.support.kernel if plan.support else None
    return plan.layer.shape, plan.scheme, _why(plan), kernel, plan.float_dtype


def _why(plan: LayerPlan) -> str:
    """Which rule decided; of one that is about this layer alone, that it is."""
    return "its own" if plan.why.startswith(f"rule {plan.layer.name}=") else plan.why


def _tied(plan: LayerPlan) -> str:
    return f" = {', '.join(plan.layer.others)}" if plan.layer.others else ""


def _name(plan: LayerPlan) -> str:
    return str(plan.float_dtype).removeprefix("torch.")
