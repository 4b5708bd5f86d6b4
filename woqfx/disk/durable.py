"""What must survive a power cut passes through here.

A file's bytes are safe once `sync` has returned; its name, its new name or its absence once its folder has been synced
too. Every step is one call of the `os` module, so that a test can count the steps and break or stop any of them.

Functions that take a path raise `OutputError` with the remedy. Those that take a file descriptor raise `OSError`, for
the descriptor has no name: their callers put `explained` around them. After a failed `sync` the state of the bytes is
unknown and another `sync` proves nothing (the kernel may have dropped them): give the file up.
"""

# Every step is a call of `os`, not of `pathlib`:
from __future__ import annotations

import errno
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from woqfx.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEMPORARY = ".woqfx-tmp"

_AGAIN = "run the same command again"
_ELSEWHERE = "choose another output path"
_REMEDIES = {
    errno.ENOSPC: f"free some space and {_AGAIN}",
    errno.EDQUOT: f"remove files or have your quota raised, and {_AGAIN}",
    errno.EFBIG: "the file system or a limit (ulimit -f) does not allow a file this large; raise it or write elsewhere",
    errno.EROFS: f"the file system is mounted read-only; {_ELSEWHERE} or mount it writable",
    errno.EACCES: f"{_ELSEWHERE} or have its permissions changed",
    errno.EPERM: f"{_ELSEWHERE} or have its permissions and attributes changed",
    errno.EIO: "the device failed; check it (the kernel's log says more) before you trust it, or write elsewhere",
    errno.ENOENT: f"the folder is not there, or not any more; make it and {_AGAIN}",
    errno.ENOTDIR: f"a part of the path is a file where a folder should be; {_ELSEWHERE}",
    errno.EISDIR: f"a folder of this name is there already; {_ELSEWHERE} or move it away",
    errno.EEXIST: f"something of this name is there already; {_ELSEWHERE} or move it away",
    errno.ELOOP: f"a symbolic link is not followed here; {_ELSEWHERE} or replace the link",
    errno.ENAMETOOLONG: f"{_ELSEWHERE}, with shorter names",
    errno.EXDEV: f"both paths must lie on one file system; {_ELSEWHERE}",
    errno.EMFILE: f"too many files are open; raise the limit (ulimit -n) and {_AGAIN}",
}


@contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` of writing to `path` into an `OutputError` that says what to do."""
    try:
        yield
    except OSError as e:
        room = _room(Path(path)) if e.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        remedy = _REMEDIES.get(e.errno or 0, f"put that right and {_AGAIN}")
        raise OutputError(f"cannot write {path}: {e.strerror or e}{room}; {remedy}") from e


def _room(path: Path) -> str:
    """Say how much space is free on the file system that holds `path`, which need not exist."""
    for place in (path.absolute(), *path.absolute().parents):
        with suppress(OSError):
            return f" ({shutil.disk_usage(place).free / 2**20:.1f} MiB free there)"
    return ""


def append(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data` at the descriptor's position. A single `write` may take less: 2 GiB at most on Linux."""
    view = memoryview(data)
    if view.nbytes:  # an empty view cannot be cast
        view = view.cast("B")
    while view.nbytes:
        view = view[os.write(fd, view) :]


def sync(fd: int) -> None:
    """Make a file's bytes and length safe."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def truncate(fd: int, size: int) -> None:
    """Cut a file off after `size` bytes, and make that safe."""
    os.ftruncate(fd, size)
    sync(fd)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Make safe which names a folder holds.

    A folder that may be written but not read cannot be opened, and some network file systems cannot sync a folder;
    neither is an error, since there is nothing better that could be done (PostgreSQL treats them alike).
    """
    with explained(path):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            return
        try:
            os.fsync(fd)
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.EBADF):
                raise
        finally:
            os.close(fd)


def replace(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give `source`, whose bytes are safe already, the name `target`, in place of what had it, and make that safe."""
    source, target = Path(source), Path(target)
    with explained(target):
        os.replace(source, target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def write_file(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Make `path` hold `data`: at every moment it holds the whole of the old or the whole of the new.

    A process that is killed on the way may leave a temporary file behind; `leftovers` finds it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_TEMPORARY}")
    try:
        with explained(path):
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                append(fd, data)
                sync(fd)
            finally:
                os.close(fd)
        replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            os.unlink(temporary)
        raise


def leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the temporary files of killed `write_file`s in `folder`; only its sole writer may remove them."""
    return sorted(Path(folder).glob(f".*{_TEMPORARY}"))


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a file, if it is there, and make that safe."""
    path = Path(path)
    with explained(path), suppress(FileNotFoundError):
        os.unlink(path)
    sync_folder(path.parent)


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder, with the folders above it where they are missing, and make that safe."""
    path = Path(path)
    with explained(path):
        if not path.parent.exists():
            make_folder(path.parent)
        try:
            os.mkdir(path)
        except FileExistsError:
            if not path.is_dir():
                raise
    sync_folder(path.parent)  # also if it was there: the run that made it may have been killed before this
