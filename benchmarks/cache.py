"""Where benchmarks keep what is large and can be made again: models, and the peers' environments."""

from __future__ import annotations

import tempfile
from pathlib import Path


def default_cache() -> Path:
    """A folder of ours in the system's temporary directory."""
    return Path(tempfile.gettempdir()) / "woqfx-benchmarks"
