"""Writes the tables of configurations.md from the vocabularies themselves.

    python docs/make_configurations.py [--check]

With --check nothing is written; the exit code is 1 if the page is not current.
"""

from __future__ import annotations

import sys
from pathlib import Path

from woqfx.vocabularies.reading import VOCABULARIES
from woqfx.vocabularies.vocabulary import Vocabulary

PAGE = Path(__file__).parent / "configurations.md"
BEGIN, END = "<!-- tables: make docs -->\n", "<!-- end of tables -->\n"


def table(vocabulary: Vocabulary) -> str:
    """A row for each parameter."""
    always = ", ".join(f'`{name}="{value}"`' for name, value in vocabulary.always.items())
    rows = [f"## {vocabulary.title}", "", *([f"Always {always}.", ""] if always else [])]
    rows += ["| parameter | default | what it does here |", "|---|---|---|"]
    rows += [f"| `{one.name}` | `{one.default!r}` | {one.does} |" for one in vocabulary.parameters]
    return "\n".join(rows) + "\n"


def page() -> str:
    """The page with tables that are current."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = "\n".join(table(vocabulary) for vocabulary in VOCABULARIES)
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


if __name__ == "__main__":
    current = page()
    if "--check" not in sys.argv:
        PAGE.write_text(current)
    elif PAGE.read_text() != current:
        sys.exit(f"the tables in {PAGE} are not current: make docs")
