"""Pieces of a page. Whatever they are given is escaped, unless its type is `Markup`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NewType

from woqfx.report.svg import text

#: Text that is HTML already: made here or in `svg`, never read from a file.
Markup = NewType("Markup", str)


def section(title: str, about: str, *content: Markup) -> Markup:
    """A section of the page; nothing if it has no content."""
    body = "".join(content)
    return Markup(f"<section><h2>{text(title)}</h2><p>{text(about)}</p>{body}</section>" if body else "")


def titled(title: str, content: Markup) -> Markup:
    """A part of a section with a heading of its own; nothing without content."""
    return Markup(f"<h3>{text(title)}</h3>{content}" if content else "")


def paragraph(words: str) -> Markup:
    """A few words."""
    return Markup(f"<p>{text(words)}</p>")


def figures(facts: Mapping[str, str]) -> Markup:
    """The most important numbers, large: what each is, and its value."""
    cards = (f"<div><b>{text(value)}</b><span>{text(name)}</span></div>" for name, value in facts.items())
    return Markup(f'<div class="figures">{"".join(cards)}</div>')


def definitions(facts: Mapping[str, str]) -> Markup:
    """Names and what they are."""
    entries = (f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items())
    return Markup(f"<dl>{''.join(entries)}</dl>")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int) -> Markup:
    """A table whose last `numbers` columns are numbers."""
    first = len(columns) - numbers

    def cells(kind: str, row: Sequence[str]) -> str:
        marked = (f'<{kind} class="n">' if index >= first else f"<{kind}>" for index in range(len(row)))
        return (
            "<tr>" + "".join(f"{mark}{text(cell)}</{kind}>" for mark, cell in zip(marked, row, strict=True)) + "</tr>"
        )

    body = "".join(cells("td", row) for row in rows)
    head = cells("th", columns)
    return Markup(f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>' if body else "")


def folded(summary: str, content: Markup) -> Markup:
    """Content that is shown when it is asked for."""
    return Markup(f"<details><summary>{text(summary)}</summary>{content}</details>" if content else "")
