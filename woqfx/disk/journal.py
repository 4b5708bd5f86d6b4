"""The journal of a run: what is done and safe on disk, so that a killed run can go on where it was.

A text file of JSON lines, to which lines are only ever appended. The first describes the run, each other one is a
record of something committed:

    ["240952f5",0,{"journal":1,"run":{"dtype":"nf4"}}]
    ["36086004",1,{"tensor":"lm_head.weight"}]

First the CRC-32 of all that follows its comma, in hexadecimal; then how many lines were known to be safe when this one
was written; then the content.

After a power cut whatever was written since the last sync may be cut short, filled with zeros or garbage, in any of
its pages. So reading stops at the first line that is not good, and what follows is dropped: unless a later good line
says that the bad one had been safe. Then the disk has lost what it had promised to keep, and no guess is made.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from woqfx.disk import durable
from woqfx.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    import io
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

_VERSION = 1
_MAX_BYTES = 2**28  # of a journal; a record is some 200 bytes and a model has some 100 000 tensors at most
_AFRESH = "start afresh with overwrite=True (--overwrite)"


@dataclass(frozen=True)
class Contents:
    """What a journal says: the run, and the records of what it has committed, in order."""

    run: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]


class Journal:
    """A journal that is open for appending, and locked: no other process can open it until it is closed.

    Made by `Journal.open`. `run` and the records are JSON objects.
    """

    def __init__(self, path: Path, file: io.FileIO, contents: Contents) -> None:
        self.path = path
        self._file = file
        self._run = contents.run
        self._records = list(contents.records)

    @classmethod
    def open(cls, path: str | os.PathLike[str], run: Mapping[str, Any]) -> Journal:
        """Create the journal of `run` at `path`, or go on with the one that is there.

        Raises `OutputError` if another process has it open, if it belongs to a run that was asked for differently (the
        message names each difference) or if it cannot be written; `CheckpointError` if it is damaged.
        """
        path = Path(path)
        with durable.explained(path):
            file = _open_locked(path)
            try:
                contents = _recover(path, file, _as_read(run))
            except BaseException:
                file.close()
                raise
        return cls(path, file, contents)

    @staticmethod
    def peek(path: str | os.PathLike[str]) -> Contents | None:
        """Return what the journal at `path` says, if there is one, without locking or changing it.

        Raises `CheckpointError` if it is damaged or cannot be read.
        """
        path = Path(path)
        try:
            with open(path, "rb", buffering=0, opener=_open_plain) as file:
                data = _bytes(path, file)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise CheckpointError(f"cannot read {path}: {e.strerror}; check its permissions and the device") from e
        contents, _length = _read(path, data)
        return contents

    @staticmethod
    def discard(path: str | os.PathLike[str]) -> None:
        """Remove the journal at `path`, if there is one, whatever it holds.

        Raises `OutputError` if another process has it open.
        """
        path = Path(path)
        if path.exists():
            with durable.explained(path), _open_locked(path):
                durable.remove(path)

    @property
    def run(self) -> Mapping[str, Any]:
        """What the first line says of the run."""
        return self._run

    @property
    def records(self) -> Sequence[Mapping[str, Any]]:
        """What has been committed, by this process and those before it."""
        return self._records

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Commit `records`: one write and one sync.

        After an `OutputError` the journal is closed, since more lines after half a line would be lost. `Journal.open`
        mends it.
        """
        batch = [_as_read(record) for record in records]
        safe = 1 + len(self._records)
        lines = b"".join(_line(safe, record) for record in batch)
        with durable.explained(self.path):
            try:
                durable.append(self._file.fileno(), lines)
                durable.sync(self._file.fileno())
            except BaseException:
                self.close()
                raise
        self._records += batch

    def close(self) -> None:
        """Close the journal and let others open it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _open_locked(path: Path) -> io.FileIO:
    """Open or create the file at `path` and lock it."""
    while True:
        file = open(path, "a+b", buffering=0, opener=_open_plain)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            file.close()
            raise OutputError(
                f"another woqfx is writing to {path.parent} (it has locked {path.name}); wait for it or stop it"
            ) from e
        except OSError:
            file.close()
            raise
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # whoever had the lock removed the file between our opening and our locking it


def _open_plain(path: str, flags: int) -> int:
    """Open without following a link or waiting for a pipe: the folder may have been made by somebody else."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _recover(path: Path, file: io.FileIO, run: dict[str, Any]) -> Contents:
    """Read what is good, drop what is not, and make the result safe before anything builds on it."""
    data = _bytes(path, file)
    contents, length = _read(path, data)
    if contents is not None:
        _require_same(path, dict(_flat("", contents.run)), dict(_flat("", run)))
    if length < len(data):
        durable.truncate(file.fileno(), length)
    if contents is None:
        durable.append(file.fileno(), _line(0, {"journal": _VERSION, "run": run}))
    # Also when nothing was changed: the lines that were read may be those of a process killed before its sync.
    durable.sync(file.fileno())
    durable.sync_folder(path.parent)
    return contents or Contents(run, [])


def _bytes(path: Path, file: io.FileIO) -> bytes:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
        raise CheckpointError(f"{path} is no journal: it is no regular file of at most {_MAX_BYTES} bytes; {_AFRESH}")
    file.seek(0)
    return file.readall()


def _as_read(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` as it will read back from JSON: tuples are lists, keys are texts."""
    read: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    return read


def _line(safe: int, content: Mapping[str, Any]) -> bytes:
    rest = f"{safe},{json.dumps(content, separators=(',', ':'))}]".encode()
    return b'["%08x",%b\n' % (zlib.crc32(rest), rest)


def _unline(line: bytes) -> tuple[int, dict[str, Any]] | None:
    """Return what `_line` was given, or None if this is not a line that it made."""
    rest = line[12:]
    if line[:12] != b'["%08x",' % zlib.crc32(rest):
        return None
    try:
        safe, content = json.loads(b"[" + rest)
    except (ValueError, RecursionError):
        return None
    if type(safe) is not int or not isinstance(content, dict):
        return None
    return safe, content


def _read(path: Path, data: bytes) -> tuple[Contents | None, int]:
    """Return what the good lines say, and how many bytes they take.

    Nothing is committed before the first line is safe, so without a good first line there is nothing to lose: None.
    """
    *lines, _unended = data.split(b"\n")
    good: list[dict[str, Any]] = []
    length, intact = 0, True
    for line in lines:
        unlined = _unline(line)
        if unlined is None:
            intact = False
            continue
        safe, content = unlined
        if safe > len(good):
            raise CheckpointError(
                f"{path} is damaged: line {len(good) + 1} was safe on disk and is not good any more, so the run cannot "
                f"go on; {_AFRESH}, and check the disk"
            )
        if intact:
            good.append(content)
            length += len(line) + 1
    if not good:
        return None, 0
    header, *records = good
    if header.get("journal") != _VERSION or not isinstance(header.get("run"), dict):
        raise CheckpointError(
            f"{path} begins with {str(header)[:80]}, which this woqfx does not understand: go on with the version that "
            f"wrote it, or {_AFRESH}"
        )
    return Contents(header["run"], records), length


def _require_same(path: Path, there: Mapping[str, str], now: Mapping[str, str]) -> None:
    differences = [
        f"  - {name}: {there.get(name, 'absent')} there, {now.get(name, 'absent')} now"
        for name in dict.fromkeys([*there, *now])
        if there.get(name) != now.get(name)
    ]
    if differences:
        listed = "\n".join(differences)
        raise OutputError(
            f"{path.parent} holds an unfinished run that was asked for differently:\n{listed}\n"
            f"ask for the same to go on with it, or {_AFRESH}"
        )


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the JSON text of each value inside `value`."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else key, inner)
    else:
        yield name, json.dumps(value)
