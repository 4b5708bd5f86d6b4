"""The manifest of a checkpoint: what its folder holds and what every quantized weight is.

`docs/checkpoint.md` describes the file. A folder is a checkpoint when the manifest, which is written last, is there.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import woqfx
from woqfx.errors import CheckpointError, WoqfxError
from woqfx.floats import FLOAT_DTYPES
from woqfx.format import StoredWeight
from woqfx.scheme import Scheme
from woqfx.source.files import parse_object
from woqfx.source.metadata import GENERATION_CONFIG, SIDECARS

if TYPE_CHECKING:
    from typing import TypeGuard

MANIFEST = "woqfx.json"
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
REPORT = "woqfx-report.json"
MAX_MANIFEST = 32 << 20  # bytes; a weight takes some 200
VERSION = 1

_SMALL_FILES = frozenset({CONFIG, INDEX, REPORT, GENERATION_CONFIG, *SIDECARS})
_WEIGHTS = re.compile(r"[A-Za-z0-9._-]{1,200}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileFacts:
    """A file's size in bytes and the SHA-256 of its content in hexadecimal."""

    nbytes: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> FileFacts:
        """The facts of a file that holds `data`."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


class Marker(Protocol):
    """The file that is written last, and makes a folder a finished output. It lists all the others."""

    @property
    def file_name(self) -> str:
        """Its place in the folder."""

    @property
    def files(self) -> Mapping[str, FileFacts]:
        """All the others, by name."""

    def to_bytes(self) -> bytes:
        """Its content."""


@dataclass(frozen=True)
class Manifest:
    """What the manifest says. It holds no time, path or machine: the same model and request give the same bytes.

    `request` is what was asked for; `weights` are the quantized ones by parameter name, with their relative `errors`
    |W - W'| / |W| as measured when they were made; `aliases` gives for each later name of a tied tensor the stored one;
    `files` are all the others in the folder.
    """

    request: Mapping[str, Any]
    weights: Mapping[str, StoredWeight]
    errors: Mapping[str, float | None]
    aliases: Mapping[str, str]
    files: Mapping[str, FileFacts]

    @property
    def file_name(self) -> str:
        """Its place in the folder."""
        return MANIFEST

    def to_bytes(self) -> bytes:
        """The file's content."""
        schemes = list(dict.fromkeys(weight.scheme for _, weight in sorted(self.weights.items())))
        numbers = {scheme: number for number, scheme in enumerate(schemes)}
        names = {dtype: name for name, dtype in FLOAT_DTYPES.items()}
        return as_json(
            {
                "woqfx": VERSION,
                "generator": f"woqfx {woqfx.__version__}",
                "request": self.request,
                "schemes": [scheme.to_json() for scheme in schemes],
                "weights": {
                    name: {
                        "scheme": numbers[weight.scheme],
                        "shape": list(weight.shape),
                        "dtype": names[weight.float_dtype],
                        "error": self.errors[name],
                    }
                    for name, weight in sorted(self.weights.items(), key=lambda item: natural(item[0]))
                },
                "aliases": dict(sorted(self.aliases.items())),
                "files": {
                    name: {"bytes": facts.nbytes, "sha256": facts.sha256} for name, facts in sorted(self.files.items())
                },
            }
        )

    @classmethod
    def parse(cls, data: bytes, path: Path) -> Manifest:
        """Read and check the content of the file at `path`, which may be hostile. Raises `WoqfxError`."""
        return _Reader(parse_object(data, path), path).manifest()


class _Reader:
    """Checks a parsed manifest piece by piece; a message names the file and what was found in it."""

    def __init__(self, found: dict[str, Any], path: Path) -> None:
        self.found, self.path = found, path

    def bad(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} cannot be used: {what}; fetch the checkpoint again, or make it anew")

    def manifest(self) -> Manifest:
        version = self.found.get("woqfx")
        if type(version) is not int or version != VERSION:
            raise CheckpointError(
                f"{self.path} has format version {short(version)}, where woqfx {woqfx.__version__} reads {VERSION}; "
                "use the woqfx that made it, or make it anew"
            )
        weights = {name: self.weight(name, facts) for name, facts in self.object("weights").items()}
        errors = {name: self.error(name, facts.get("error")) for name, facts in self.object("weights").items()}
        aliases = self.object("aliases")
        for alias, name in aliases.items():
            if not isinstance(name, str) or name in aliases:
                raise self.bad(f"it ties {short(alias)} to {short(name)}, which is not the name of a tensor")
        files = {name: self.file(name, facts) for name, facts in self.object("files").items()}
        return Manifest(self.object("request"), weights, errors, aliases, files)

    def object(self, key: str) -> dict[str, Any]:
        value = self.found.get(key)
        if not isinstance(value, dict):
            raise self.bad(f"{key!r} is {short(value)}, not an object")
        return value

    @cached_property
    def schemes(self) -> list[Scheme]:
        listed = self.found.get("schemes")
        if not isinstance(listed, list):
            raise self.bad(f"'schemes' is {short(listed)}, not a list")
        schemes = []
        for number, scheme in enumerate(listed):
            if not isinstance(scheme, dict):
                raise self.bad(f"scheme {number} is {short(scheme)}, not an object")
            try:
                schemes.append(Scheme.from_json(scheme))
            except (WoqfxError, TypeError) as error:  # TypeError: a list where a name should be cannot be looked up
                raise self.bad(f"scheme {number}: {short(str(error))}") from error
        return schemes

    def weight(self, name: str, facts: Any) -> StoredWeight:
        if not isinstance(facts, dict):
            raise self.bad(f"weight {short(name)} is {short(facts)}, not an object")
        shape, scheme, dtype = facts.get("shape"), facts.get("scheme"), facts.get("dtype")
        if not isinstance(shape, list) or len(shape) < 2 or not all(_is_count(size) and size > 0 for size in shape):
            raise self.bad(f"weight {short(name)} has shape {short(shape)}, not at least two positive whole numbers")
        if not _is_count(scheme) or scheme >= len(self.schemes):
            raise self.bad(f"weight {short(name)} has scheme {short(scheme)}, where {len(self.schemes)} are listed")
        if not isinstance(dtype, str) or dtype not in FLOAT_DTYPES:
            raise self.bad(f"weight {short(name)} has dtype {short(dtype)}, not one of {', '.join(FLOAT_DTYPES)}")
        return StoredWeight(self.schemes[scheme], tuple(shape), FLOAT_DTYPES[dtype])

    def error(self, name: str, error: Any) -> float | None:
        if error is None or (type(error) in (int, float) and math.isfinite(error)):
            return error  # type: ignore[no-any-return]
        raise self.bad(f"weight {short(name)} has error {short(error)}, not a number")

    def file(self, name: str, facts: Any) -> FileFacts:
        if name not in _SMALL_FILES and not _WEIGHTS.fullmatch(name):
            raise self.bad(f"it lists {short(name)}, a file that no checkpoint has")
        if not isinstance(facts, dict):
            raise self.bad(f"file {short(name)} is {short(facts)}, not an object")
        nbytes, sha256 = facts.get("bytes"), facts.get("sha256")
        if not _is_count(nbytes) or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise self.bad(f"file {short(name)} has {short(nbytes)} bytes and SHA-256 {short(sha256)}")
        return FileFacts(nbytes, sha256)


def _is_count(found: Any) -> TypeGuard[int]:
    return type(found) is int and found >= 0  # JSON's true is an int to Python


def short(found: Any) -> str:
    """`found` in a message: a hostile value must not become a hostile message."""
    if isinstance(found, dict):
        return f"an object of {len(found)}"
    if isinstance(found, list | tuple) and len(found) > 8:
        return f"a list of {len(found)}"
    text = ascii(found) if isinstance(found, str) else json.dumps(found)
    return text if len(text) <= 200 else f"{text[:200]}..."


def as_json(value: Any, *, sort_keys: bool = False) -> bytes:
    """The one way in which small files are written, so that the same content gives the same bytes."""
    return (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=sort_keys) + "\n").encode()


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts dotted names with their numbers as numbers: `layers.2` before `layers.10`."""
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in name.split(".")]
