"""Virtual environments for peers, in the cache folder: made once, told apart by what was asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def environment(folder: Path, *installs: Sequence[str]) -> Path:
    """Make an environment in `folder` by these `pip install` command lines, unless it is there; returns its Python."""
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(" ".join(arguments) for arguments in installs)
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"making {folder}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    for arguments in installs:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True)
    stamp.write_text(wanted)
    return python
