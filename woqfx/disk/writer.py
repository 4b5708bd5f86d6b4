"""Filling an output folder so that a run can be killed at any point and go on.

Shards are written front to back, in the order of the plan, into the folder's work place. The journal says up to where
each of them is safe on disk, and what the bytes up to there hash to; a run that goes on checks that, cuts off what
lies behind, and continues there. `woqfx.disk.output` describes how the finished files appear.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from woqfx.disk import durable
from woqfx.disk.journal import Journal
from woqfx.disk.manifest import INDEX, FileFacts, Marker, as_json
from woqfx.disk.output import JOURNAL, WORK, Finished, abandon, claim, files_of, finished, items_of, publish
from woqfx.disk.shards import Shard
from woqfx.disk.tensorfile import raw_bytes
from woqfx.errors import CheckpointError, OutputError

_COMMIT_SECONDS = 2.0
_COMMIT_BYTES = 256 << 20


class Writer:
    """An output folder being filled, item by item, in the order of `shards`. Made by `open_writer`.

    An item is one parameter of the model: its parts are written together. `facts` holds those that are
    written, by an earlier run or this one, with what was noted of each.
    """

    def __init__(self, folder: Path, journal: Journal, shards: Sequence[Shard]) -> None:
        self.folder, self.work, self._journal = folder, folder / WORK, journal
        self._shards = shards
        self._shard_of = {item: shard for shard in self._shards for item in shard.items}
        self._pending: list[dict[str, Any]] = []  # journal records of what is not safe yet
        self._pending_bytes = 0
        self._last_commit = time.monotonic()
        self._fd: int | None = None  # of the shard that is being written
        self._hash = hashlib.sha256()
        self._size = 0
        self._complete: dict[str, FileFacts] = {}
        self._finished = finished(journal.records)
        written = items_of(journal.records)
        self.facts: dict[str, Any] = {record["item"]: record["facts"] for record in written}
        if self._finished is not None:
            self._finished.check(folder)
        else:
            self._resume({record["file"]: record for record in written})

    def _resume(self, last: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on where an earlier run was. `last` is the newest journal record of each shard that was begun."""
        for shard in self._shards:
            if shard.name not in last:
                return
            path = self.work / shard.name
            self._size = last[shard.name]["bytes"]
            self._hash = _hash_of_prefix(path, self._size, last[shard.name]["sha256"])
            if last[shard.name]["item"] != shard.items[-1]:
                with durable.explained(path):
                    self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                    durable.truncate(self._fd, self._size)
                    os.lseek(self._fd, self._size, os.SEEK_SET)
                return
            self._complete[shard.name] = FileFacts(self._size, self._hash.hexdigest())

    @property
    def is_complete(self) -> bool:
        """Whether all that was to be written is safe: it may only have to be published."""
        return self._finished is not None

    @property
    def nbytes(self) -> int:
        """Bytes of complete and begun shards."""
        return sum(facts.nbytes for facts in self._complete.values()) + (self._size if self._fd is not None else 0)

    def write(self, item: str, parts: Mapping[str, Tensor], facts: Any, *, commit: bool = False) -> bool:
        """Write the next item. `facts` go into the journal and come back as `facts`. True if this committed.

        It commits by itself now and then, and if it is told to.

        Raises `OutputError` if the parts are not what was planned, or cannot be written.
        """
        shard = self._shard_of[item]
        with durable.explained(self.work / shard.name):
            if self._fd is None:
                self._begin(shard)
            for name, part in parts.items():
                entry = shard.layout.entries[name]
                self._pad(entry.start)
                if (entry.dtype, entry.shape, entry.start) != (part.dtype, tuple(part.shape), self._size):
                    raise OutputError(f"{name}: {part.dtype} {list(part.shape)} came where the plan has {entry}")
                self._append(raw_bytes(part.contiguous()))
            ends_shard = item == shard.items[-1]
            if ends_shard:
                self._pad(shard.layout.size)
        self.facts[item] = facts
        digest = self._hash.hexdigest()
        self._pending.append({"item": item, "file": shard.name, "bytes": self._size, "sha256": digest, "facts": facts})
        late = time.monotonic() - self._last_commit >= _COMMIT_SECONDS
        if not (commit or ends_shard or late or self._pending_bytes >= _COMMIT_BYTES):
            return False
        self._commit(shard)
        if ends_shard:
            self._complete[shard.name] = FileFacts(self._size, digest)
            self._let_go()
        return True

    def note(self, record: Mapping[str, Any]) -> None:
        """Commit a record of the caller's own. A run that goes on finds what there is in `work` only after a commit."""
        self._journal.append([record])

    def _begin(self, shard: Shard) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.work / shard.name, flags, 0o666)
        durable.sync_folder(self.work)
        self._hash, self._size = hashlib.sha256(), 0
        self._append(shard.layout.header)

    def _append(self, data: bytes | memoryview) -> None:
        assert self._fd is not None
        durable.append(self._fd, data)
        self._hash.update(data)
        self._size += len(data)
        self._pending_bytes += len(data)

    def _pad(self, position: int) -> None:
        """Fill up with zeros, where a layout has gaps for the sake of alignment."""
        self._append(bytes(max(0, position - self._size)))

    def _commit(self, shard: Shard) -> None:
        """Make all that was written safe, then say so in the journal."""
        assert self._fd is not None
        with durable.explained(self.work / shard.name):
            durable.sync(self._fd)
        self._journal.append(self._pending)
        self._pending, self._pending_bytes, self._last_commit = [], 0, time.monotonic()

    def finish(
        self,
        small_files: Callable[[], Mapping[str, bytes]],
        marker: Callable[[Mapping[str, FileFacts]], Marker],
    ) -> None:
        """Write the small files and the marker of a finished output, then publish everything.

        `marker` is given the facts of all files, by name. Neither is called if an earlier run came so far.
        """
        if self._finished is None:
            texts = dict(small_files())
            if len(self._shards) > 1:
                texts[INDEX] = self._index()
            files = self._complete | {name: FileFacts.of(text) for name, text in texts.items()}
            finished_by = marker(files)
            texts[finished_by.file_name] = finished_by.to_bytes()
            for name, text in sorted(texts.items()):
                durable.write_file(self.work / name, text)
            sizes = {name: facts.nbytes for name, facts in sorted(files.items())}
            self._finished = Finished(sizes, sorted(files_of(self.folder) - set(files)), finished_by.file_name)
            self._journal.append([self._finished.to_json()])
        publish(self.folder, self._journal)

    def _index(self) -> bytes:
        where = {name: shard.name for shard in self._shards for name in shard.layout.entries}
        total = sum(entry.nbytes for shard in self._shards for entry in shard.layout.entries.values())
        return as_json({"metadata": {"total_size": total}, "weight_map": where})

    def abandon(self) -> None:
        """End the run, and leave nothing of it."""
        self._let_go()
        abandon(self.folder, self._journal)

    def close(self) -> None:
        """Let go of the folder, keeping what was committed."""
        self._let_go()
        self._journal.close()

    def _let_go(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)


def open_writer(
    out: Path,
    shards: Sequence[Shard],
    run: Mapping[str, Any],
    *,
    overwrite: bool,
    resumable: bool = True,
    beside: Collection[str] = (),
    check: Callable[[Writer], None] | None = None,
) -> Writer:
    """Start filling `out`, or go on with a run of the same description `run` that was stopped.

    Refuses what `woqfx.disk.output.claim` refuses, which tells of `beside`. Raises `CheckpointError` if what the
    stopped run left is not as its journal says, or if `check`, which is asked unless all was done, raises it; with
    `overwrite` it is thrown away instead, unless it only cannot be read now.
    """

    def attempt() -> Writer:
        journal = claim(out, run, overwrite=overwrite, resumable=resumable, beside=beside)
        try:
            writer = Writer(out, journal, shards)
            if check is not None and not writer.is_complete:
                check(writer)
            return writer
        except BaseException:
            journal.close()
            raise

    try:
        return attempt()
    except CheckpointError as error:
        unreadable = isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError)
        if unreadable or not overwrite:
            raise
    Journal.discard(out / JOURNAL)
    return attempt()


def _hash_of_prefix(path: Path, size: int, expected: str) -> Any:
    """The state of SHA-256 after the first `size` bytes, which the journal says are safe: check that they are."""
    digest, left = hashlib.sha256(), size
    afresh = "start afresh with overwrite=True (--overwrite)"
    try:
        with path.open("rb") as file:
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
    except OSError as error:
        raise CheckpointError(
            f"{path}, part of an unfinished run, cannot be read: {error.strerror}; {afresh}"
        ) from error
    if left or digest.hexdigest() != expected:
        raise CheckpointError(f"{path}, part of an unfinished run, is not as the journal left it; {afresh}")
    return digest
