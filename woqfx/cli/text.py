"""How the command line writes numbers, schemes and tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from woqfx.wording import count as count
from woqfx.wording import duration as duration
from woqfx.wording import scheme as scheme
from woqfx.wording import size as size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

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


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, if that is a terminal; gives what to call with how much is done, of how much.

    Until it is called, the bar shows that something is going on.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """`what` on standard error, until it is done, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def notes(about: Mapping[str, str]) -> list[str]:
    """What there is to know of single tensors: each note once, with the tensors that it is about."""
    names: dict[str, list[str]] = {}
    for name, note in about.items():
        names.setdefault(note, []).append(name)
    return [f"{one[0]}{f' and {len(one) - 1} more' if one[1:] else ''}: {note}" for note, one in names.items()]


def layer(weight: str) -> str:
    """A layer by the name that rules match, from its parameter's."""
    return weight.removesuffix(".weight")


def shape(sizes: tuple[int, ...]) -> str:
    """`576 x 1536`."""
    return " x ".join(map(str, sizes))
