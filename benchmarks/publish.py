"""What a benchmark found, for machines and for people: results/NAME.json, results/NAME.md, and its place in a page.

Imports nothing large, as `process` does not, and for the same reason.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
DOCUMENT = DOCS / "benchmarks.md"


def name_argument(parser: argparse.ArgumentParser, usual: str) -> None:
    """The argument `--name`: another one than usual keeps a measurement apart from the published one."""
    parser.add_argument("--name", default=usual, help="of the files in benchmarks/results (%(default)s)")


def read(name: str) -> dict[str, Any]:
    """What was found before; empty if nothing was."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def publish(name: str, result: Mapping[str, Any], page: str, document: Path | None = None) -> None:
    """Write `result` and its `page`; put the page into `document` (docs/benchmarks.md), if that has a place for it."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(page)
    document = document or DOCUMENT
    if f"<!-- {name} -->" in (text := document.read_text()):
        document.write_text(embed(text, name, page))


def embed(document: str, name: str, page: str) -> str:
    """`document` with `page` between its two markers for `name`. Raises `ValueError` if it has none."""
    before, found, rest = document.partition(f"<!-- {name} -->\n")
    _, closed, after = rest.partition(f"<!-- end of {name} -->\n")
    if not found or not closed:
        raise ValueError(f"the document has no place for {name}: put <!-- {name} --> and <!-- end of {name} --> there")
    return f"{before}{found}{page}{closed}{after}"
