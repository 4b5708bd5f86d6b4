"""Charts as SVG: lines, bars and tables of colour. Colours are the page's own variables, so that they follow its theme.

Nothing is written but numbers and escaped text, and every mark has its exact value in a `<title>`, which browsers show
under the pointer and read aloud.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

Format = Callable[[float], str]

_WIDTH = 920.0
_LEFT, _RIGHT = 64.0, 12.0
_LEAST = 1e-30  # of what has a place on a logarithmic scale
_TEXT = 'font-size="11" fill="var(--dim)"'


def text(found: str) -> str:
    """Any text as part of a page, cut if it is very long."""
    return escape(found if len(found) <= 200 else found[:200] + "…")


def line_chart(series: Mapping[str, Sequence[float | None]], columns: Sequence[str], unit: Format) -> str:
    """A line for each of `series` over `columns`, on a logarithmic scale; None and 0, or next to it, are gaps."""
    values = [value for line in series.values() for value in line if value and value > _LEAST]
    if not values:
        return ""
    low, high = _decades(min(values), max(values))
    top, bottom = 12.0, 232.0
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(columns))

    def place(index: int, value: float) -> tuple[float, float]:
        share = (math.log10(value) - low) / (high - low)
        return _LEFT + (index + 0.5) * step, bottom - share * (bottom - top)

    parts = []
    for exponent in _ticks(low, high):
        _, y = place(0, exponent)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="rule"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" {_TEXT}>{text(unit(exponent))}</text>')
    for number, (name, line) in enumerate(series.items()):
        color = f"var(--series-{number % 4})"
        points = [(*place(i, value), i, value) for i, value in enumerate(line) if value and value > _LEAST]
        path = " ".join(f"{'L' if i and (line[i - 1] or 0) > _LEAST else 'M'}{x:.1f} {y:.1f}" for x, y, i, _ in points)
        parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2" stroke-linejoin="round"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 if len(points) < 60 else 1.5}" fill="{color}">'
            f"<title>{text(columns[i])}, {text(name)}: {text(unit(value))}</title></circle>"
            for x, y, i, value in points
        ]
    parts += _column_names(columns, step, bottom + 18)
    return _legend(series) + _figure(bottom + 26, parts)


def bars(values: Sequence[float | None], columns: Sequence[str], unit: Format) -> str:
    """A bar for each column, from 0."""
    most = max((value for value in values if value is not None), default=0.0)
    if most <= 0:
        return ""
    top, bottom = 12.0, 132.0
    step = (_WIDTH - _LEFT - _RIGHT) / len(values)
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="rule"/>')
        label = text(unit(share * most))
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" {_TEXT}>{label}</text>')
    for index, value in enumerate(values):
        if value is not None:
            height = max(0.0, value) / most * (bottom - top)
            x, width = _LEFT + index * step + step * 0.15, max(0.5, step * 0.7)
            parts.append(
                f'<rect x="{x:.1f}" y="{bottom - height:.1f}" width="{width:.1f}" height="{height:.1f}" rx="1.5" '
                f'fill="var(--series-1)"><title>{text(columns[index])}: {text(unit(value))}</title></rect>'
            )
    parts += _column_names(columns, step, bottom + 18)
    return _figure(bottom + 26, parts)


def color_table(
    rows: Mapping[str, Sequence[float | None]],
    columns: Sequence[str],
    unit: Format,
    shade: Callable[[float], tuple[str, float]],
) -> str:
    """A cell for each row and column, coloured by `shade(value)`: the name of a colour and how strong it is, 0 to 1."""
    left = 12.0 + 6.3 * min(34, max(map(len, rows), default=0))
    step = (_WIDTH - left - _RIGHT) / max(1, len(columns))
    height = 22.0
    parts = []
    for row, (name, values) in enumerate(rows.items()):
        y = row * height
        shown = name if len(name) <= 34 else "…" + name[-33:]
        parts.append(
            f'<text x="{left - 8:.1f}" y="{y + 15:.1f}" text-anchor="end" {_TEXT}>{text(shown)}'
            f"<title>{text(name)}</title></text>"
        )
        for column, value in enumerate(values):
            if value is None:
                continue
            color, strength = shade(value)
            x, width = left + column * step, max(0.5, step - (1 if step > 4 else 0))
            cell = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height - 2:.1f}"'
            title = f"<title>{text(columns[column])} {text(name)}: {text(unit(value))}</title>"
            parts.append(f'<rect {cell} rx="2" class="cell"/>')
            opacity = 0.06 + 0.94 * min(1.0, max(0.0, strength))
            parts.append(f'<rect {cell} rx="2" fill="var(--{color})" fill-opacity="{opacity:.2f}">{title}</rect>')
            if step > 52:
                middle = f'x="{x + width / 2:.1f}" y="{y + 14:.1f}" text-anchor="middle" font-size="10"'
                ink = "var(--on-strong)" if strength > 0.55 else "var(--ink)"
                parts.append(f'<text {middle} fill="{ink}" pointer-events="none">{text(unit(value))}</text>')
    bottom = len(rows) * height
    parts += _column_names(columns, step, bottom + 14, left)
    return _figure(bottom + 22, parts)


def color_key(colors: Sequence[str], least: str, most: str) -> str:
    """What the colours of a table mean: one that grows from the least value, or two that grow apart from none."""
    strengths = [("good", 1.0), ("good", 0.5), ("bad", 0.0), ("bad", 0.5), ("bad", 1.0)]
    if len(colors) == 1:
        strengths = [(colors[0], share / 4) for share in range(5)]
    cells = "".join(
        f'<i style="background:var(--{color});opacity:{0.08 + 0.92 * strength:.2f}"></i>'
        for color, strength in strengths
    )
    return f'<p class="key">{text(least)} {cells} {text(most)}</p>'


def _column_names(columns: Sequence[str], step: float, y: float, left: float = _LEFT) -> list[str]:
    """Names under the columns: as many as there is room for."""
    room = 14 + 6 * max(map(len, columns), default=0)
    every = max(1, math.ceil(room / step)) if step else 1
    return [
        f'<text x="{left + (index + 0.5) * step:.1f}" y="{y:.1f}" text-anchor="middle" {_TEXT}>{text(name)}</text>'
        for index, name in enumerate(columns)
        if index % every == 0
    ]


def _legend(names: Mapping[str, object]) -> str:
    keys = [
        f'<span><i style="background:var(--series-{number % 4})"></i>{text(name)}</span>'
        for number, name in enumerate(names)
    ]
    return f'<p class="legend">{"".join(keys)}</p>' if len(keys) > 1 else ""


def _figure(height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img">{"".join(parts)}</svg>'


def _decades(low: float, high: float) -> tuple[float, float]:
    """Exponents of 10 around a range, at least a third of a decade apart."""
    bottom, top = math.log10(low), math.log10(high)
    if top - bottom > 1.2:
        return math.floor(bottom), math.ceil(top)
    return bottom - 0.1, max(top + 0.1, bottom + 0.33)


def _ticks(low: float, high: float) -> list[float]:
    """Values for the scale's lines: powers of ten, and 2 and 5 times them where there is room."""
    every = max(1, math.ceil((high - low) / 6))
    factors: tuple[float, ...] = (1, 2, 5) if high - low <= 3 else (1,)
    if high - low < 0.5:
        factors = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    exponents = range(math.floor(low), math.ceil(high) + 1, every)
    candidates = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    return [value for value in candidates if low - 1e-9 <= math.log10(value) <= high + 1e-9]
