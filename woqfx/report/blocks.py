"""The sections of a report about the blocks that an algorithm went through with data."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from woqfx.report.facts import STEPS, BlockFacts, LayerFacts, number
from woqfx.report.html import Markup, paragraph, section, table, titled
from woqfx.report.svg import bars, color_key, color_table, line_chart
from woqfx.wording import duration, size

#: Numbers by row; the columns are blocks.
Rows: TypeAlias = Mapping[str, Sequence[float | None]]

_STEPS = {
    "nearest": "rounded to nearest as it came",
    "transform": "rescaled, then to nearest",
    "round": "rounded",
    "refine": "refined",
}


def block_sections(blocks: Sequence[BlockFacts]) -> Iterator[Markup]:
    """What there is to say of these blocks."""
    columns = column_names([block.name for block in blocks])
    yield _outputs(blocks, columns)
    yield _layers(blocks, columns)
    yield _rescaling(blocks, columns)
    yield _choices(blocks, columns)
    yield _experts(blocks)
    yield _costs(blocks, columns)


def column_names(blocks: Sequence[str]) -> list[str]:
    """Short names of blocks: `model.layers.12` is 12, unless there are several stacks of them."""
    stems = {name.rpartition(".")[0] for name in blocks}
    if len(stems) == 1:
        return [name.rpartition(".")[2] for name in blocks]
    return [".".join(name.split(".")[part] for part in (0, -1)) if "." in name else name for name in blocks]


def _outputs(blocks: Sequence[BlockFacts], columns: Sequence[str]) -> Markup:
    lines = {
        _STEPS[step]: [block.error.get(step) for block in blocks]
        for step in STEPS
        if any(step in block.error for block in blocks)
    }
    return section(
        "Error of each block's output",
        "|Y' - Y|² / |Y|² on calibration data, after each step. Y is what the block gives in float for the inputs that "
        "it got.",
        Markup(line_chart(lines, columns, relative)),
    )


def _layers(blocks: Sequence[BlockFacts], columns: Sequence[str]) -> Markup:
    def of(read: Callable[[LayerFacts], float | None]) -> dict[str, list[float | None]]:
        return _by_layer(blocks, read)

    errors = of(_last_output)
    kind = "output"
    if not _values(errors):
        errors, kind = of(lambda layer: _last(layer.weight_error)), "weight"
    gains = of(lambda layer: _gain(layer.output_error if kind == "output" else layer.weight_error))
    return section(
        "Error of each layer",
        f"Relative squared error of the layer's {kind}"
        + (" for the inputs that it got" if kind == "output" else "")
        + "; and by how much the algorithm changed it against rounding to nearest.",
        titled(f"{kind} error", errors_chart(errors, columns)),
        titled("against rounding to nearest", _gains_chart(gains, columns)),
    )


def _rescaling(blocks: Sequence[BlockFacts], columns: Sequence[str]) -> Markup:
    """Rescalings that were used, by the numbers that were chosen, and those that were not, with the reason."""
    names = dict.fromkeys(feed.name for block in blocks for feed in block.feeds)
    keys = dict.fromkeys(
        key
        for block in blocks
        for feed in block.feeds
        for key, value in feed.facts.items()
        if number(value) is not None
    )
    charts = []
    for key in keys:
        rows: dict[str, list[float | None]] = {name: [None] * len(blocks) for name in names}
        for index, block in enumerate(blocks):
            for feed in block.feeds:
                if feed.used:
                    rows[feed.name][index] = number(feed.facts.get(key))
        charts.append(titled(key, _chart(rows, columns)))
    unused = [(f"{b.name} {f.name}", f.reason or "no reason was given") for b in blocks for f in b.feeds if not f.used]
    return section(
        "Rescaling",
        "What was divided by a scale for each channel, and what it feeds multiplied by it; each was checked to leave "
        "the float output as it was.",
        *charts,
        titled("not used", table(("where", "why"), unused, numbers=0)),
    )


def _choices(blocks: Sequence[BlockFacts], columns: Sequence[str]) -> Markup:
    """Every number that algorithms noted of layers or blocks; of lists the mean."""
    charts = []
    keys = dict.fromkeys(key for block in blocks for layer in block.layers.values() for key in layer.notes)
    for key in keys:
        rows = _by_layer(blocks, lambda layer, key=key: mean(layer.notes.get(key)))  # type: ignore[misc]
        charts.append(titled(f"{key}, of each layer", _chart(rows, columns)))
    of_blocks = dict.fromkeys(key for block in blocks for key in block.notes)
    rows = {key: [mean(block.notes.get(key)) for block in blocks] for key in of_blocks}
    charts += [titled(f"{key}, of each block", _chart({key: values}, columns)) for key, values in rows.items()]
    told = [
        (f"{block.name}.{name}", f"{key}: {value}")
        for block in blocks
        for name, layer in block.layers.items()
        for key, value in layer.notes.items()
        if isinstance(value, str)
    ]
    return section(
        "What was chosen",
        "Clips, damping and whatever else the algorithm told; of lists, the mean.",
        *charts,
        titled("in words", table(("layer", "told"), told, numbers=0)),
    )


def _experts(blocks: Sequence[BlockFacts]) -> Markup:
    """How many tokens each expert saw."""
    rows: dict[str, list[float | None]] = {}
    starved = []
    for block in blocks:
        for name, layer in block.layers.items():
            if layer.experts:
                rows[f"{block.name}.{name}"] = [float(expert.tokens) for expert in layer.experts]
                starved += [
                    (f"{block.name}.{name}", str(number_), expert.fallback, str(expert.tokens))
                    for number_, expert in enumerate(layer.experts)
                    if expert.fallback
                ]
    most = max((len(row) for row in rows.values()), default=0)
    padded = {name: row + [None] * (most - len(row)) for name, row in rows.items()}
    largest = max((value for row in rows.values() for value in row if value), default=1.0)
    return section(
        "Experts",
        "Tokens that each expert saw. One that saw none, or too few, was rounded to nearest.",
        Markup(
            color_table(
                padded,
                [str(index) for index in range(most)],
                lambda value: f"{value:.0f}",
                lambda value: ("plain", math.sqrt(value / largest)) if value else ("bad", 1.0),
            )
            if rows
            else ""
        ),
        titled("rounded to nearest", table(("weight", "expert", "why", "tokens"), starved, numbers=1)),
    )


def _costs(blocks: Sequence[BlockFacts], columns: Sequence[str]) -> Markup:
    return section(
        "Time and memory",
        "Of the run that made this checkpoint; of one that went on after it was stopped, the blocks that it did.",
        titled("time of each block", Markup(bars([block.seconds for block in blocks], columns, duration))),
        titled("peak memory behind it", Markup(bars([block.memory for block in blocks], columns, size))),
    )


def _by_layer(
    blocks: Sequence[BlockFacts], read: Callable[[LayerFacts], float | None]
) -> dict[str, list[float | None]]:
    rows: dict[str, list[float | None]] = defaultdict(lambda: [None] * len(blocks))
    for index, block in enumerate(blocks):
        for name, layer in block.layers.items():
            rows[name.removesuffix(".weight")][index] = read(layer)
    return dict(rows)


def _chart(rows: Rows, columns: Sequence[str]) -> Markup:
    """A table of colour of whatever numbers there are; the number itself if it is the same everywhere."""
    values = _values(rows)
    if not values:
        return Markup("")
    low, span = min(values), max(values) - min(values)
    if span == 0:
        return paragraph(f"{plain(low)} everywhere")
    key = color_key(["plain"], plain(low), plain(low + span))
    shade = partial(_between, low, span)
    return Markup(key + color_table(rows, columns, plain, shade))


def errors_chart(rows: Rows, columns: Sequence[str]) -> Markup:
    """A table of colour of errors, by their logarithm."""
    values = [value for value in _values(rows) if value > 0]
    if not values:
        return Markup("")
    low, high = math.log(min(values)), math.log(max(values))
    key = color_key(["plain"], relative(min(values)), relative(max(values)))
    shade = partial(_between, low, max(high - low, 1.0))
    return Markup(
        key
        + color_table(rows, columns, relative, lambda value: shade(math.log(value)) if value > 0 else ("plain", 0.0))
    )


def _gains_chart(rows: Rows, columns: Sequence[str]) -> Markup:
    """A table of colour of changes: less is better."""
    if not _values(rows):
        return Markup("")
    key = color_key(["good", "bad"], "no error left", "twice the error")
    return Markup(key + color_table(rows, columns, change, lambda value: ("good" if value <= 0 else "bad", abs(value))))


def _between(low: float, span: float, value: float) -> tuple[str, float]:
    return "plain", 0.08 + 0.92 * (value - low) / span


def _values(rows: Rows) -> list[float]:
    return [value for row in rows.values() for value in row if value is not None]


def _last(errors: Mapping[str, float]) -> float | None:
    return errors[list(errors)[-1]] if errors else None


def _last_output(layer: LayerFacts) -> float | None:
    return _last(layer.output_error)


def _gain(errors: Mapping[str, float]) -> float | None:
    """The last error as a share of that of rounding to nearest, less one."""
    first, last = errors.get("nearest"), _last(errors)
    return last / first - 1 if first and last is not None else None


def mean(value: Any) -> float | None:
    """A number as it is, a list of numbers as its mean, None for anything else."""
    if isinstance(value, list):
        numbers = [found for inner in value if (found := mean(inner)) is not None]
        return sum(numbers) / len(numbers) if numbers else None
    return number(value)


def relative(value: float) -> str:
    """An error: three digits."""
    return f"{value:.3g}"


def plain(value: float) -> str:
    """Any number: four digits."""
    return f"{value:.4g}"


def change(value: float) -> str:
    """A change in per cent."""
    return f"{value:+.0%}"
