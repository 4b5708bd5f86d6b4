"""Building woqfx's wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build(folder: Path, *options: str, **environment: str) -> None:
    """Build it into `folder`; without isolation, so that headers have the same paths each time and compile once.

    With the option `--wheel` straight from the tree, else by way of the source distribution, which stays beside it.
    """
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), *options, str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})


def only_wheel(folder: Path) -> Path:
    """The one wheel in a folder."""
    (wheel,) = folder.glob("*.whl")
    return wheel
