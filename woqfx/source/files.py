"""Reading the small files of a model folder, which may be hostile."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from woqfx.errors import SourceError

MAX_CONFIG = 16 << 20  # bytes; real ones have kilobytes
MAX_INDEX = 64 << 20  # a mixture of experts lists tens of thousands of tensors


class ModelFolder:
    """A folder that holds a model. Raises `SourceError` if there is none at `path`.

    A symbolic link is followed only to a place inside the folder, or, if the folder is a snapshot in a
    Hugging Face cache (`models--*/snapshots/*`, whose files are links to `models--*/blobs`), inside that
    repository's cache: a model folder from elsewhere must not pull other files of this machine into the output.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise SourceError(f"{self.path} is not a folder; give the folder that holds config.json and the weights")
        resolved = self.path.resolve()
        repository = resolved.parent.parent
        in_cache = resolved.parent.name == "snapshots" and repository.name.startswith("models--")
        self._root = repository if in_cache else resolved

    def find(self, name: str) -> Path | None:
        """The path of a file in this folder, None if there is no such file.

        Raises `SourceError` if `name` is not a plain file name or the file lies outside.
        """
        if not is_plain_name(name):
            raise SourceError(f"{self.path} refers to a file by the name {name!r}; only plain names are followed")
        path = self.path / name
        try:
            resolved = path.resolve(strict=True)
        except FileNotFoundError:
            if path.is_symlink():
                raise SourceError(f"{path} is a link to {path.readlink()}, which does not exist") from None
            return None
        except (OSError, RuntimeError) as error:
            raise SourceError(f"{path} cannot be opened: {error}") from error
        if not resolved.is_relative_to(self._root):
            raise SourceError(
                f"{path} is a link to {resolved}, outside of the model's folder, and is not followed; "
                "put the file itself there, or give the folder that holds it"
            )
        if not resolved.is_file():
            raise SourceError(f"{path} is not a regular file")
        return path

    def read(self, name: str, limit: int) -> bytes | None:
        """The bytes of a file in this folder, None if there is no such file; `SourceError` past `limit` bytes."""
        path = self.find(name)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from error
        if len(data) > limit:
            raise SourceError(f"{path} has more than {limit} bytes, too many for a file of its kind; check it")
        return data

    def read_json(self, name: str, limit: int) -> dict[str, Any] | None:
        """The JSON object in a file of this folder, None if there is no such file."""
        data = self.read(name, limit)
        return None if data is None else parse_object(data, self.path / name)


def is_plain_name(name: object) -> bool:
    """Whether it names a file in a folder, whatever folder that is, and nothing outside."""
    return isinstance(name, str) and name not in ("", ".", "..") and not any(one in name for one in "/\\\0")


def parse_object(data: bytes, path: Path) -> dict[str, Any]:
    """Parse a JSON object. A key that stands there twice is an error: readers disagree on which one counts."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            [(repeated, _)] = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"the key {repeated[:80]!r} stands there more than once")
        return members

    try:
        parsed = json.loads(data, object_pairs_hook=unique)
    except RecursionError:
        raise SourceError(f"{path} is nested too deeply to be a model's file; fetch it again") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError among them
        raise SourceError(f"{path} is not valid JSON: {error}; fetch it again or mend it") from error
    if not isinstance(parsed, dict):
        raise SourceError(f"{path} holds a JSON {type(parsed).__name__}, not an object; fetch it again")
    return parsed
