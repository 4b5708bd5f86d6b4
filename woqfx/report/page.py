"""A report as one HTML page that needs nothing else: no script, no network, no other file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import woqfx
from woqfx.disk.manifest import natural
from woqfx.inspection import WeightFacts
from woqfx.report.blocks import block_sections, errors_chart
from woqfx.report.facts import Report
from woqfx.report.html import Markup, definitions, figures, folded, section, table
from woqfx.report.style import STYLE
from woqfx.report.svg import text
from woqfx.scheme import Scheme
from woqfx.wording import count, duration, scheme, size

# Whatever a hostile folder might have smuggled in: nothing is fetched, nothing runs.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_page(report: Report) -> str:
    """The page."""
    name = report.checkpoint.path.resolve().name
    sections = [
        figures(_figures(report)),
        section("How it was made", "", definitions(_request(report.request))),
        *block_sections(report.blocks),
        _weights(report),
        _bits(report),
        _table(report),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(name)} · woqfx report</title><style>{STYLE}</style></head>\n<body><main>"
        f"<h1>{text(name)}</h1><p>{text(_subtitle(report))}</p>\n"
        + "\n".join(part for part in sections if part)
        + f"\n<footer>Made by woqfx {text(woqfx.__version__)}. Numbers stand under the pointer on every mark, and come "
        "as JSON from <code>woqfx report --json</code>.</footer></main></body></html>\n"
    )


def _subtitle(report: Report) -> str:
    algorithm = report.request.get("algorithm")
    weights = len(report.checkpoint.weights)
    return (
        f"{weights} weights quantized by {algorithm}" if isinstance(algorithm, str) else f"{weights} quantized weights"
    )


def _figures(report: Report) -> dict[str, str]:
    found = report.checkpoint
    before = sum(prod(weight.shape) for weight in found.weights)
    facts = {
        "bits per weight, scales included": f"{found.bits_per_weight:.2f}",
        "weights quantized": count(before),
        "on disk, all of it": size(found.nbytes),
    }
    errors = [weight.error for weight in found.weights if weight.error is not None]
    if errors:
        facts["mean error |W - W'| / |W|"] = f"{sum(errors) / len(errors):.4f}"
    first, last = _output_errors(report)
    if first and last is not None:
        facts["blocks' output error, against rounding to nearest"] = f"{last / first - 1:+.0%}"
    seconds = [block.seconds for block in report.blocks if block.seconds is not None]
    if seconds:
        facts["time in the blocks"] = duration(sum(seconds))
    memory = [block.memory for block in report.blocks if block.memory is not None]
    if memory:
        facts["peak memory"] = size(max(memory))
    return facts


def _output_errors(report: Report) -> tuple[float, float | None]:
    """The mean errors of the blocks' outputs rounded to nearest, and as they are in the end."""
    pairs = [(e["nearest"], list(e.values())[-1]) for block in report.blocks if "nearest" in (e := block.error)]
    if not pairs:
        return 0.0, None
    return sum(first for first, _ in pairs) / len(pairs), sum(last for _, last in pairs) / len(pairs)


def _request(request: Mapping[str, Any]) -> dict[str, str]:
    """The request in words; a hostile one may hold anything."""
    facts = {}
    for key, value in request.items():
        if key == "scheme" and isinstance(value, dict):
            facts["scheme"] = ", ".join(f"{name} {_word(inner)}" for name, inner in value.items())
        elif value not in ({}, [], None):
            facts[str(key)] = _word(value)
    return facts


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_word(inner)}" for name, inner in list(value.items())[:20])
    if isinstance(value, list):
        return ", ".join(_word(inner) for inner in value[:20])
    return str(value)


def _weights(report: Report) -> Markup:
    """Every weight's own error, from the manifest: the only error there is without calibration data."""
    rows: dict[str, list[float | None]] = {}
    places: dict[str, int] = {}
    for weight in report.checkpoint.weights:
        places.setdefault(_place(weight)[1], len(places))
    for weight in report.checkpoint.weights:
        kind, place = _place(weight)
        rows.setdefault(kind, [None] * len(places))[places[place]] = weight.error
    columns = list(places)
    return section(
        "Error of each weight",
        "|W - W'| / |W| of the weight itself, whatever its inputs are.",
        errors_chart(rows, columns),
    )


def _place(weight: WeightFacts) -> tuple[str, str]:
    """What kind of weight it is, and in which block: its name without the first number, and that number."""
    parts = weight.name.removesuffix(".weight").split(".")
    at = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    if at is None:
        return ".".join(parts), "-"
    stack = ".".join(parts[:at])
    return ".".join(
        (*(() if stack in ("model.layers", "layers", "transformer.h") else (stack,)), *parts[at + 1 :])
    ), parts[at]


def _bits(report: Report) -> Markup:
    """How the weights are stored."""
    groups: defaultdict[Scheme, list[WeightFacts]] = defaultdict(list)
    for weight in report.checkpoint.weights:
        groups[weight.scheme].append(weight)

    def rows() -> Iterator[tuple[str, ...]]:
        for what, weights in groups.items():
            numbers, nbytes = sum(weight.weights for weight in weights), sum(weight.nbytes for weight in weights)
            yield scheme(what), str(len(weights)), count(numbers), f"{8 * nbytes / numbers:.2f}", size(nbytes)

    rest = report.checkpoint.nbytes - report.checkpoint.quantized_bytes
    kept = ("kept as they were, and small files", str(report.checkpoint.kept), "", "", size(rest))
    columns = ("stored as", "layers", "weights", "bits per weight", "size")
    return section("Bits", "Scales and zero points are counted.", table(columns, [*rows(), kept], numbers=4))


def _table(report: Report) -> Markup:
    ordered = sorted(report.checkpoint.weights, key=lambda weight: natural(weight.name))
    rows = [
        (
            weight.name.removesuffix(".weight"),
            " x ".join(map(str, weight.shape)),
            scheme(weight.scheme),
            "unknown" if weight.error is None else f"{weight.error:.4f}",
            f"{weight.bits_per_weight:.2f}",
            size(weight.nbytes),
        )
        for weight in ordered
    ]
    columns = ("layer", "shape", "stored as", "error", "bits", "size")
    return section("Every layer", "", folded("show all layers", table(columns, rows, numbers=3)))
