"""Paths that callers give."""

from __future__ import annotations

import reprlib
from os import PathLike
from pathlib import Path
from typing import Any

from woqfx.errors import WoqfxError


def read_path(given: Any, parameter: str) -> Path:
    """The path that was given as `parameter`. Raises `WoqfxError` for what is none."""
    if not isinstance(given, str | PathLike):
        shown = " ".join(reprlib.repr(given).split())  # a module's own takes pages
        raise WoqfxError(f"{parameter} is {shown}: give the path of a folder or file, as a string or a pathlib.Path")
    return Path(given)
