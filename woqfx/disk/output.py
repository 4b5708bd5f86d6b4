"""The folder that a run writes into: who may, what is unfinished there, and how what is finished appears.

While a run is unfinished its output folder holds two things of its own. `woqfx-unfinished.jsonl` is the journal: it is
there before anything else and goes last, so an output is unfinished exactly as long as it is there; and who has it
locked is the only one to write. `woqfx-unfinished/` holds the files as they are made. When all are safe on disk, a last
journal record lists them; from then on nothing is lost if the folder is changed, and they are moved up one by one, the
marker last: the manifest of a checkpoint, or the receipt of an export. So a folder with a marker is complete, and what
was there before stays whole until its successor is safe.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from woqfx.disk import durable
from woqfx.disk.journal import Contents, Journal
from woqfx.disk.manifest import MANIFEST, MAX_MANIFEST, Manifest
from woqfx.disk.receipt import RECEIPT, files_listed
from woqfx.errors import CheckpointError, OutputError, WoqfxError
from woqfx.source.files import ModelFolder, is_plain_name

WORK = "woqfx-unfinished"
JOURNAL = "woqfx-unfinished.jsonl"
MARKERS = (MANIFEST, RECEIPT)


@dataclass(frozen=True)
class Finished:
    """The last record of a journal: the files to move up, with their sizes; those of an earlier output; the marker."""

    files: Mapping[str, int]
    stale: Sequence[str]
    marker: str

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Finished:
        """Read what `to_json` gave. The folder may be someone else's: names lead nowhere else. `CheckpointError`."""
        files, stale, marker = (record.get(key) for key in ("files", "stale", "marker"))
        if (
            not isinstance(files, dict)
            or not isinstance(stale, list)
            or not all(is_plain_name(name) for name in (*files, *stale))
            or not all(type(nbytes) is int for nbytes in files.values())
            or marker not in MARKERS
        ):
            raise _forged("does not list plain names of files")
        return cls(files, stale, marker)

    def check(self, out: Path) -> None:
        """Check that every file is there, up or not. Raises `CheckpointError`."""
        for name, nbytes in self.files.items():
            sizes = [path.stat().st_size for path in (out / WORK / name, out / name) if path.is_file()]
            if nbytes not in sizes[:1]:
                raise CheckpointError(
                    f"{out / WORK / name}, part of an unfinished run, is not as the journal left it; "
                    "start afresh with overwrite=True (--overwrite), and check the disk"
                )

    def to_json(self) -> dict[str, Any]:
        """As the journal holds it."""
        return {"files": dict(self.files), "stale": list(self.stale), "marker": self.marker}


def _forged(what: str) -> CheckpointError:
    return CheckpointError(
        f"{JOURNAL} {what}: no run has written it so; start afresh with overwrite=True (--overwrite), or choose "
        "another folder"
    )


def finished(records: Sequence[Mapping[str, Any]]) -> Finished | None:
    """The record that says that every file is safe, if there is one. Raises `CheckpointError` for a forged one."""
    last = next((record for record in records if "files" in record), None)
    return None if last is None else Finished.parse(last)


def items_of(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of items that were written. Raises `CheckpointError` for one that no run writes."""
    items = [record for record in records if "item" in record]
    for record in items:
        item, file, nbytes, digest = (record.get(key) for key in ("item", "file", "bytes", "sha256"))
        if not (isinstance(item, str) and is_plain_name(file) and type(nbytes) is int and isinstance(digest, str)):
            raise _forged("does not say of a tensor where it is")
    return items


def claim(
    out: Path, run: Mapping[str, Any], *, overwrite: bool, resumable: bool, beside: Collection[str] = ()
) -> Journal:
    """Lock `out` for a run, and return its journal: a new one, or that of the same run, which was stopped.

    Files whose names are in `beside` may be in the folder already.

    A run that is not `resumable`, since its source lives in one process only, starts again instead of going on. With
    `overwrite` an unfinished run that was asked for differently gives way.

    Raises `OutputError` if another process is writing there, or if the folder holds something that would be lost;
    `CheckpointError` if the journal that is there is damaged.
    """
    _refuse_file(out)
    if (out / WORK).is_symlink():
        raise OutputError(f"{out / WORK} is a symbolic link, and is not followed: remove it")
    earlier = Journal.peek(out / JOURNAL)
    replace = overwrite
    if earlier is not None:
        same = earlier.run == json.loads(json.dumps(run))
        if (same and not resumable) or (overwrite and not same):
            _give_way(out, earlier)
            replace = True
    refuse_taken(out, replace=replace, beside=beside)
    durable.make_folder(out)
    journal = Journal.open(out / JOURNAL, run)
    try:
        if not journal.records:
            _start(out, journal, replace=replace)
        durable.make_folder(out / WORK)
    except BaseException:
        journal.close()
        raise
    return journal


def refuse_taken(out: Path, *, replace: bool, beside: Collection[str] = ()) -> None:
    """Refuse a folder without an unfinished run in which something would be lost. Raises `OutputError`."""
    _refuse_file(out)
    if not (out / JOURNAL).exists():
        _refuse_strangers(out, beside)
        _refuse_finished(out, replace=replace)


def refuse_inside(out: Path, origin: Path) -> None:
    """Refuse to write into the model that is read. Raises `OutputError`."""
    if origin.resolve() in (out.resolve(), *out.resolve().parents):
        raise OutputError(f"{out} is, or is inside, the model that is read, {origin}: choose another folder")


def _refuse_file(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file: give a folder")


def _refuse_strangers(out: Path, beside: Collection[str]) -> None:
    if out.is_dir() and not _is_finished(out):
        with durable.explained(out):
            strangers = sorted(entry.name for entry in out.iterdir() if entry.name not in (WORK, *beside))
        if strangers:
            raise OutputError(f"{out} holds other files, {strangers[0]} for one: choose an empty or a new folder")


def _refuse_finished(out: Path, *, replace: bool) -> None:
    if _is_finished(out) and not replace:
        raise OutputError(
            f"{out} holds a finished checkpoint: pass overwrite=True (--overwrite) or choose another folder"
        )


def _is_finished(out: Path) -> bool:
    return any((out / marker).exists() for marker in MARKERS)


def _start(out: Path, journal: Journal, *, replace: bool) -> None:
    """Clear what an earlier run left behind, unless another process has finished since the folder was looked at."""
    try:
        _refuse_finished(out, replace=replace)
    except OutputError:
        durable.remove(journal.path)
        raise
    _clear_work(out)


def _give_way(out: Path, earlier: Contents) -> None:
    """End an unfinished run that will not go on: complete it if all of it is there, otherwise forget it.

    Completing it, when it was stopped while its files were moved up, leaves a folder that is of a piece.
    """
    if finished(earlier.records) is None:
        Journal.discard(out / JOURNAL)
        return
    with Journal.open(out / JOURNAL, earlier.run) as journal:
        publish(out, journal)


def files_of(out: Path) -> set[str]:
    """The files of the output in `out`, as far as its marker can be read; empty if there is none."""
    listed: set[str] = set()
    for marker, read in ((MANIFEST, _files_of_manifest), (RECEIPT, files_listed)):
        try:
            data = ModelFolder(out).read(marker, MAX_MANIFEST)
            listed |= set() if data is None else read(data, out / marker)
        except WoqfxError:
            continue
    return listed


def _files_of_manifest(data: bytes, path: Path) -> set[str]:
    return set(Manifest.parse(data, path).files)


def publish(out: Path, journal: Journal) -> None:
    """Move the finished files up, the marker last, and end the run. Any step may have been done by a killed run."""
    record = finished(journal.records)
    assert record is not None
    record.check(out)
    work = out / WORK
    if (work / record.marker).exists():
        for marker in MARKERS:
            durable.remove(out / marker)
        for name in record.files:
            if (work / name).exists():
                durable.replace(work / name, out / name)
        for name in record.stale:
            durable.remove(out / name)
        durable.replace(work / record.marker, out / record.marker)
    _clear_work(out)
    durable.remove(journal.path)
    journal.close()


def abandon(out: Path, journal: Journal) -> None:
    """End a run of which nothing is to stay: `out` is as it was before, or gone if there is nothing else in it."""
    _clear_work(out)
    durable.remove(journal.path)
    journal.close()
    with durable.explained(out):
        if not any(out.iterdir()):
            os.rmdir(out)  # noqa: PTH106 - durable steps are calls of `os`


def _clear_work(out: Path) -> None:
    work = out / WORK
    if work.is_dir():
        with durable.explained(work):
            for path in sorted(work.iterdir()):
                durable.remove(path)
            os.rmdir(work)  # noqa: PTH106 - durable steps are calls of `os`
        durable.sync_folder(out)
