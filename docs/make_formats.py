"""Writes the table of formats.md from what the formats say of themselves, with the built-in plugins alone.

    python docs/make_formats.py [--check]

With --check nothing is written; the exit code is 1 if the table is not current.
"""

from __future__ import annotations

import sys
from pathlib import Path

from make_cli import built_ins_only

from woqfx.plugins import registry

PAGE = Path(__file__).parent / "formats.md"
BEGIN, END = "<!-- table: make docs -->\n", "<!-- end of table -->\n"


def table() -> str:
    """A row for each format."""
    rows = ["| format | whose | read, and kept packed | written | checked with |", "|---|---|---|---|---|"]
    for name in registry().names("format"):
        form = registry().get("format", name)
        rows.append(f"| `{name}` | {form.title} | {form.reads} | {form.writes or 'no'} | {form.checked_with} |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """The page with a table that is current."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    built_ins_only()
    current = page()
    if "--check" not in sys.argv:
        PAGE.write_text(current)
    elif PAGE.read_text() != current:
        sys.exit(f"the table in {PAGE} is not current: make docs")
