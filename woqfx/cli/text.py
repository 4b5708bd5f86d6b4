"""How the command line writes numbers, schemes and tables."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from woqfx.scheme import Scheme

_PIPE_WIDTH = 180


def console() -> Console:
    """Standard output. In a pipe or a file lines are long enough for every table: nothing is folded or cut."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(width=width, highlight=False, markup=False)


class Grid:
    """A table. On a narrow terminal its `expendable` columns are left out, the first ones first."""

    def __init__(self, *columns: str, numbers: Collection[str] = (), expendable: Sequence[str] = ()) -> None:
        self._columns, self._numbers, self._expendable = columns, numbers, expendable
        self._rows: list[tuple[dict[str, str], str]] = []

    def add(self, *cells: str, style: str = "") -> None:
        """One more row, a cell for each column."""
        self._rows.append((dict(zip(self._columns, cells, strict=True)), style))

    def show(self, out: Console) -> None:
        """Print it, and an empty line after it."""
        from rich.measure import Measurement

        columns, hidden = list(self._columns), list[str]()
        boundless = out.options.update_width(10_000)
        while len(hidden) < len(self._expendable):
            if Measurement.get(out, boundless, self._table(columns)).maximum <= out.width:
                break
            hidden.append(self._expendable[len(hidden)])
            columns.remove(hidden[-1])
        out.print(self._table(columns))
        if hidden:
            out.print(f"(no room for: {', '.join(hidden)})", style="dim")
        out.print()

    def _table(self, columns: Sequence[str]) -> Table:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for column in columns:
            number = column in self._numbers
            table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
        for cells, style in self._rows:
            table.add_row(*(cells[column] for column in columns), style=style)
        return table


def facts(out: Console, lines: Mapping[str, str]) -> None:
    """Lines with a name in front of each; a value may have several lines. Nothing is wrapped, so it can be copied."""
    from rich.text import Text

    width = max(map(len, lines))
    for name, value in lines.items():
        first, *others = value.split("\n")
        out.print(Text(f"{name:<{width}}", "bold"), first, sep="  ", soft_wrap=True)
        for line in others:
            out.print(f"{'':<{width}}", line, sep="  ", soft_wrap=True)


def size(count: float) -> str:
    """Bytes for people: `98.4 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes"


def count(number: int) -> str:
    """Weights for people: `134.5 M`."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return str(number)


def duration(seconds: float) -> str:
    """Time for people: `2.3 s`, `4 min 10 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def scheme(what: Scheme | None) -> str:
    """A scheme in a few words: what is as usual is not said."""
    if what is None:
        return "kept"
    words = [what.dtype, "per row" if what.group_size == -1 else f"group {what.group_size}"]
    words += [] if what.symmetric else ["asym"]
    words += ["double-quant"] if what.double_quant else [] if what.scale_dtype == "fp16" else [what.scale_dtype]
    words += [] if what.compute_dtype == "fp32" else [f"in {what.compute_dtype}"]
    return " ".join(words)


def layer(weight: str) -> str:
    """A layer by the name that rules match, from its parameter's."""
    return weight.removesuffix(".weight")


def shape(sizes: tuple[int, ...]) -> str:
    """`576 x 1536`."""
    return " x ".join(map(str, sizes))
