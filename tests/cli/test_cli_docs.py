"""docs/cli.md is what help says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_the_page_is_current():
    done = subprocess.run([sys.executable, DOCS / "make_cli.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
