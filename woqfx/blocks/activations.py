"""Keeping activations: in memory up to a budget, beyond it in mapped files; and safe on disk for a later run."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from woqfx.disk import durable
from woqfx.disk.tensorfile import raw_bytes
from woqfx.errors import CheckpointError
from woqfx.source.files import is_plain_name

#: Bytes of activations that are kept in memory.
IN_MEMORY = 1 << 30

_ALIGNMENT = 64
_AFRESH = "start afresh with overwrite=True (--overwrite)"


@dataclass(frozen=True)
class Spec:
    """A tensor's type, shape, and first byte in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """The tensor's size."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Shelf(Sequence[Tensor]):
    """Tensors that are put down one after the other, and read any number of times. Who reads one leaves it as it is."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def append(self, tensor: Tensor) -> int:
        """Keep a tensor; returns its number."""
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        return self._tensors[index]

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def memory(self) -> int:
        """Bytes that it takes in memory."""
        return sum(tensor.nbytes for tensor in self._tensors)

    def clear(self) -> None:
        """Let go of all tensors."""
        self._tensors = []


class FileShelf(Shelf):
    """A shelf in a file, which is mapped: the system takes its pages back when it needs memory."""

    def __init__(self, file: io.FileIO, path: Path) -> None:
        super().__init__()
        self.path = path
        self._file = file
        self._digest = hashlib.sha256()
        self._specs: list[Spec] = []
        self._size = 0

    @classmethod
    def create(cls, path: Path) -> FileShelf:
        """At `path`, in place of what is there. Raises `OutputError`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with durable.explained(path):
            return cls(io.FileIO(os.open(path, flags, 0o600), "r+"), path)

    @classmethod
    def temporary(cls, folder: Path | None) -> FileShelf:
        """In a file without a name, in `folder` or where temporary files go. Raises `OutputError`."""
        place = Path(tempfile.gettempdir()) if folder is None else folder
        with durable.explained(place):
            file, name = tempfile.mkstemp(dir=place)
            os.unlink(name)  # noqa: PTH108 - a step as in `woqfx.disk.durable`
        return cls(io.FileIO(file, "r+"), place)

    @classmethod
    def reopen(cls, folder: Path, record: Mapping[str, Any]) -> FileShelf:
        """What an earlier run left. Raises `CheckpointError` if it is not as `record`, from `commit`, says."""
        if not is_plain_name(record["file"]):
            raise CheckpointError(f"the journal of an unfinished run leads out of {folder}; {_AFRESH}")
        path = folder / record["file"]
        try:
            shelf = cls(io.FileIO(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "r"), path)
            with path.open("rb") as file:
                found = path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(
                f"{path}, the activations of an unfinished run, cannot be read: {error.strerror}; {_AFRESH}"
            ) from error
        if found != (record["bytes"], record["sha256"]):
            raise CheckpointError(
                f"{path}, the activations of an unfinished run, is not as the journal left it; {_AFRESH}"
            )
        for kind, *shape in record["tensors"]:
            shelf._add(Spec(getattr(torch, kind), tuple(shape), shelf._size))
        return shelf

    def append(self, tensor: Tensor) -> int:
        """As in `Shelf`. Raises `OutputError`."""
        data = raw_bytes(tensor.contiguous())
        with durable.explained(self.path):
            for part in (data, bytes(-data.nbytes % _ALIGNMENT)):
                durable.append(self._file.fileno(), part)
                self._digest.update(part)
        self._add(Spec(tensor.dtype, tuple(tensor.shape), self._size))
        return len(self._specs) - 1

    def _add(self, spec: Spec) -> None:
        self._specs.append(spec)
        self._size += spec.nbytes + -spec.nbytes % _ALIGNMENT

    def commit(self) -> dict[str, Any]:
        """Make it safe on disk, and return what `reopen` needs, as JSON. Raises `OutputError`."""
        with durable.explained(self.path):
            durable.sync(self._file.fileno())
        durable.sync_folder(self.path.parent)
        return {
            "file": self.path.name,
            "bytes": self._size,
            "sha256": self._digest.hexdigest(),
            "tensors": [[str(spec.dtype).removeprefix("torch."), *spec.shape] for spec in self._specs],
        }

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if len(self._tensors) < len(self._specs):
            # Copied on write, so that nothing can change the file.
            mapped = torch.from_numpy(np.memmap(self._file, np.uint8, "c", shape=(self._size,)))
            self._tensors = [
                mapped[spec.start : spec.start + spec.nbytes].view(spec.dtype).view(spec.shape) for spec in self._specs
            ]
        return self._tensors[index]

    def __len__(self) -> int:
        return len(self._specs)

    @property
    def memory(self) -> int:
        """As in `Shelf`."""
        return 0

    def clear(self) -> None:
        """As in `Shelf`; the file stays, if it has a name."""
        super().clear()
        self._specs = []
        self._file.close()


class Store:
    """Where a run keeps activations: `folder` holds those that do not fit into memory, or are to outlive the process.

    Without a folder nothing outlives it, and what does not fit goes where temporary files go.
    """

    def __init__(self, folder: Path | None, budget: int = IN_MEMORY) -> None:
        self.folder, self._budget = folder, budget
        self._shelves: list[Shelf] = []

    def shelf(self, expected: int) -> Shelf:
        """A shelf for about so many bytes. Raises `OutputError`."""
        used = sum(shelf.memory for shelf in self._shelves)
        return self._add(Shelf() if used + expected <= self._budget else FileShelf.temporary(self.folder))

    def lasting(self, name: str, expected: int) -> Shelf:
        """A shelf that a later run can reopen, in the file of this name, if there is a folder. Raises `OutputError`."""
        return self.shelf(expected) if self.folder is None else self._add(FileShelf.create(self.folder / name))

    def reopen(self, record: Mapping[str, Any]) -> Shelf:
        """See `FileShelf.reopen`."""
        assert self.folder is not None
        return self._add(FileShelf.reopen(self.folder, record))

    def _add(self, shelf: Shelf) -> Shelf:
        self._shelves.append(shelf)
        return shelf

    def discard(self, shelf: Shelf) -> None:
        """Let go of a shelf, and of its file."""
        shelf.clear()
        if isinstance(shelf, FileShelf) and shelf.path != self.folder and self.folder is not None:
            durable.remove(shelf.path)
        self._shelves = [other for other in self._shelves if other is not shelf]

    def close(self) -> None:
        """Let go of everything, leaving the files that have names."""
        for shelf in self._shelves:
            shelf.clear()
        self._shelves = []
