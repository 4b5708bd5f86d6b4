"""The page on formats is what the formats say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from woqfx.plugins import registry

DOCS = Path(__file__).parents[3] / "docs"


def test_the_table_is_current():
    done = subprocess.run([sys.executable, DOCS / "make_formats.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_format_says_what_it_is():
    for name in registry().names("format"):
        form = registry().get("format", name)
        assert form.title and form.reads and form.checked_with, name
        assert bool(form.writes) == form.can_write, name
