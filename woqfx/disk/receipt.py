"""What is written beside a checkpoint of another program's format: where it came from, and what it lost on the way.

Programs that read such a folder know nothing of this file. woqfx does: it makes the folder a finished output, which may
be replaced when that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import woqfx
from woqfx.disk.manifest import FileFacts, as_json
from woqfx.errors import CheckpointError
from woqfx.source.files import is_plain_name, parse_object

RECEIPT = "woqfx-export.json"
_VERSION = 1


@dataclass(frozen=True)
class Receipt:
    """`lossy` are the relative errors |W - W'| / |W| of weights that were quantized again, and what they are now."""

    format: str
    request: Mapping[str, Any]
    lossy: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, FileFacts]

    @property
    def file_name(self) -> str:
        """Its place in the folder."""
        return RECEIPT

    def to_bytes(self) -> bytes:
        """The file's content: the same for the same model and request, with no time, path or machine in it."""
        files = {name: {"bytes": facts.nbytes, "sha256": facts.sha256} for name, facts in sorted(self.files.items())}
        return as_json(
            {
                "woqfx_export": _VERSION,
                "generator": f"woqfx {woqfx.__version__}",
                "format": self.format,
                "request": self.request,
                "lossy": self.lossy,
                "files": files,
            }
        )


def files_listed(data: bytes, path: Path) -> set[str]:
    """The names of the files that a receipt lists, which may be hostile: plain ones only. Raises `WoqfxError`."""
    listed = parse_object(data, path).get("files")
    if not isinstance(listed, dict) or not all(map(is_plain_name, listed)):
        raise CheckpointError(f"{path} does not list plain names of files: remove it, or choose another folder")
    return set(listed)
