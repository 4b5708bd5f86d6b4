"""Rows of tokens that were written before, in the user's cache folder."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor


def cache_folder() -> Path:
    """`woqfx/calibration` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "woqfx" / "calibration"


def recall(key: str, count: int, length: int) -> list[Tensor] | None:
    """The rows that `remember` kept under this key; None if there are none, or not of this form."""
    try:
        found = torch.tensor(json.loads(_file(key).read_bytes()))
    except (OSError, ValueError, TypeError, RuntimeError):  # torch's for what is no table of numbers
        return None
    return list(found) if found.shape == (count, length) and found.dtype == torch.int64 else None


def remember(key: str, rows: list[Tensor]) -> None:
    """Keep rows for the next time. A folder that cannot be written to is a warning: it costs nothing but time."""
    path = _file(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as part:
            json.dump([row.tolist() for row in rows], part)
        Path(part.name).replace(path)
    except OSError as error:
        warnings.warn(f"the model's own text could not be kept in {path.parent}: {error.strerror}", stacklevel=2)


def _file(key: str) -> Path:
    return cache_folder() / f"{key}.json"
