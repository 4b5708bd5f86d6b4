"""Writing a checkpoint so that a run can be killed at any point and go on.

Everything is made in `woqfx-unfinished/` inside the output folder: shards, written front to back in the
order of the plan, and the journal, which says up to where each shard is safe. When all is there, a last
journal record lists the finished files; then they are moved up one by one, the manifest last. So a
folder with a manifest is complete, one without it says that it is not, and a checkpoint that was there
before stays whole until its successor is safe on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from woqfx import durable
from woqfx.checkpoint import INDEX, JOURNAL, MANIFEST, WORK, as_json
from woqfx.errors import CheckpointError, OutputError
from woqfx.journal import Journal
from woqfx.tensorfile import Layout, layout, raw_bytes

_COMMIT_SECONDS = 2.0
_COMMIT_BYTES = 256 << 20
_SINGLE = "model.safetensors"

#: A tensor's parts in the order in which they are written: stored name, type, shape.
Parts = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class _Shard:
    name: str
    layout: Layout
    items: tuple[str, ...]


class Writer:
    """An output folder being filled, item by item, in the order of `items`.

    An item is one parameter of the model: its parts are written together. `facts` holds those that are
    written, by an earlier run or this one, with what was noted of each.
    """

    def __init__(self, folder: Path, items: Mapping[str, Parts], run: Mapping[str, Any], shard_bytes: int) -> None:
        self.folder, self.work = folder, folder / WORK
        self._shards = _plan_shards(items, shard_bytes)
        self._shard_of = {item: shard for shard in self._shards for item in shard.items}
        durable.make_folder(self.work)
        self._journal = Journal.open(self.work / JOURNAL, run)
        self._records: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._last_commit = time.monotonic()
        self._fd: int | None = None
        self._hash = hashlib.sha256()
        self._size = 0
        committed = [record for record in self._journal.records if "item" in record]
        self.facts: dict[str, Any] = {record["item"]: record["facts"] for record in committed}
        self._finished = next((record for record in self._journal.records if "files" in record), None)
        self._hashes: dict[str, dict[str, Any]] = {}
        if self._finished is None:
            self._resume(committed)

    # -- going on where an earlier run was ---------------------------------------------------------

    def _resume(self, committed: list[Mapping[str, Any]]) -> None:
        last = {record["file"]: record for record in committed}
        for shard in self._shards:
            record = last.get(shard.name)
            if record is None:
                return
            self._hash, self._size = _hash_prefix(self.work / shard.name, record)
            if self._size == shard.layout.size:
                self._hashes[shard.name] = {"bytes": self._size, "sha256": self._hash.hexdigest()}
                continue
            with durable.explained(self.work / shard.name):
                self._fd = os.open(self.work / shard.name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                durable.truncate(self._fd, self._size)
                os.lseek(self._fd, self._size, os.SEEK_SET)
            return

    @property
    def written(self) -> int:
        """Bytes of finished and begun shards."""
        return sum(facts["bytes"] for facts in self._hashes.values()) + (self._size if self._fd is not None else 0)

    # -- writing -----------------------------------------------------------------------------------

    def write(self, item: str, parts: Mapping[str, Tensor], facts: Any) -> bool:
        """Write the next item. `facts` go into the journal and come back as `facts`. True if this committed.

        Raises `OutputError` if the parts are not what was planned, or cannot be written.
        """
        shard = self._shard_of[item]
        with durable.explained(self.work / shard.name):
            if self._fd is None:
                self._begin(shard)
            for name, part in parts.items():
                entry = shard.layout.entries[name]
                if (entry.dtype, entry.shape, entry.start) != (part.dtype, tuple(part.shape), self._size):
                    raise OutputError(f"{name}: {part.dtype} {list(part.shape)} came where the plan has {entry}")
                self._append(raw_bytes(part.contiguous()))
        self.facts[item] = facts
        digest = self._hash.hexdigest()
        self._records.append({"item": item, "file": shard.name, "bytes": self._size, "sha256": digest, "facts": facts})
        if item == shard.items[-1]:
            self._hashes[shard.name] = {"bytes": self._size, "sha256": digest}
            self.commit()
            self._end()
            return True
        late = time.monotonic() - self._last_commit >= _COMMIT_SECONDS
        if late or self._pending_bytes >= _COMMIT_BYTES:
            self.commit()
            return True
        return False

    def _begin(self, shard: _Shard) -> None:
        path = self.work / shard.name
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        durable.sync_folder(self.work)
        self._hash, self._size = hashlib.sha256(), 0
        self._append(shard.layout.header)

    def _append(self, data: bytes | memoryview) -> None:
        assert self._fd is not None
        durable.append(self._fd, data)
        self._hash.update(data)
        self._size += len(data)
        self._pending_bytes += len(data)

    def _end(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def commit(self) -> None:
        """Make all that was written safe, then say so in the journal."""
        if self._records:
            with durable.explained(self.work):
                if self._fd is not None:
                    durable.sync(self._fd)
            self._journal.append(self._records)
        self._records, self._pending_bytes, self._last_commit = [], 0, time.monotonic()

    # -- finishing ---------------------------------------------------------------------------------

    def finish(self, sidecars: Callable[[], Mapping[str, bytes]], manifest: Callable[[Any], bytes]) -> None:
        """Write the small files, then publish everything.

        `manifest` is given the facts of all files, by name, and returns the manifest's bytes.
        """
        if self._finished is None:
            files = dict(self._hashes)
            texts = dict(sidecars())
            if len(self._shards) > 1:
                texts[INDEX] = self._index()
            for name, data in sorted(texts.items()):
                durable.write_file(self.work / name, data)
                files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            files = dict(sorted(files.items()))
            durable.write_file(self.work / MANIFEST, manifest(files))
            stale = sorted(_listed(self.folder / MANIFEST) - set(files))
            self._finished = {"files": list(files), "stale": stale}
            self._journal.append([self._finished])
        self._publish(**self._finished)

    def _index(self) -> bytes:
        where = {name: shard.name for shard in self._shards for name in shard.layout.entries}
        total = sum(entry.nbytes for shard in self._shards for entry in shard.layout.entries.values())
        return as_json({"metadata": {"total_size": total}, "weight_map": where})

    def _publish(self, files: list[str], stale: list[str]) -> None:
        """Move the finished files up, the manifest last. Every step may have been done by a killed run already."""
        if (self.work / MANIFEST).exists():
            durable.remove(self.folder / MANIFEST)
            for name in files:
                if (self.work / name).exists():
                    durable.replace(self.work / name, self.folder / name)
            for name in stale:
                durable.remove(self.folder / name)
            durable.replace(self.work / MANIFEST, self.folder / MANIFEST)
        discard(self.folder, self._journal)

    def close(self) -> None:
        """Let go of the folder, keeping what was committed."""
        self._end()
        self._journal.close()


def discard(folder: Path, journal: Journal | None = None) -> None:
    """Remove the unfinished work in an output folder; the journal last, so that it can be done again."""
    work = folder / WORK
    if not work.is_dir():
        return
    for path in sorted(work.iterdir()):
        if path.name != JOURNAL:
            durable.remove(path)
    if journal is None:
        Journal.discard(work / JOURNAL)
    else:
        durable.remove(work / JOURNAL)
        journal.close()
    with durable.explained(work):
        work.rmdir()
    durable.sync_folder(folder)


def _plan_shards(items: Mapping[str, Parts], shard_bytes: int) -> list[_Shard]:
    """Fill files in order; an item is not split."""
    groups: list[dict[str, Parts]] = []
    room = 0
    for item, parts in items.items():
        size = sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in parts.values())
        if not groups or size > room:
            groups.append({})
            room = shard_bytes
        groups[-1][item] = parts
        room -= size
    count = len(groups)
    names = [_SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    return [
        _Shard(
            name,
            layout({n: spec for parts in group.values() for n, spec in parts.items()}, {"format": "pt"}),
            tuple(group),
        )
        for name, group in zip(names, groups, strict=True)
    ]


def _hash_prefix(path: Path, record: Mapping[str, Any]) -> tuple[Any, int]:
    """Read what the journal says is safe, and check that it is."""
    digest, left = hashlib.sha256(), int(record["bytes"])
    try:
        with path.open("rb") as file:
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
    except OSError as error:
        raise CheckpointError(
            f"{path}, part of an unfinished run, cannot be read: {error.strerror}; {_AFRESH}"
        ) from error
    if left or digest.hexdigest() != record["sha256"]:
        raise CheckpointError(f"{path}, part of an unfinished run, is not as the journal left it; {_AFRESH}")
    return digest, int(record["bytes"])


_AFRESH = "start afresh with overwrite=True (--overwrite)"


def _listed(manifest: Path) -> set[str]:
    """The files of the checkpoint that is about to be replaced, as far as its manifest can be read."""
    try:
        names = json.loads(manifest.read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in names if isinstance(name, str) and Path(name).name == name and name not in ("", ".", "..")}
