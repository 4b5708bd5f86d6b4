"""Packed weights in files: a model that was packed once is only read the next time.

A cache is a folder. A file in it holds one weight: a text that says exactly what was packed, its checksum, zeros up to
a page's end, and the packed bytes. A file is used only if its text is, byte for byte, the one that would be written
now, if size and checksum agree, and if the kernels take its bytes as a weight of the shape; else the weight is read and
packed again, and the file written anew. The text has the fingerprint of the checkpoint (names, sizes and times of its
files), so that another checkpoint's file, or an older one's, is never taken for it.

The layout is the same on every CPU of one byte order, so no instruction set is in the text. Files are not synced: one
that a power cut has torn fails its checksum. Checksums find damage, not malice: a cache is trusted as far as its folder
is.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from woqfx import Scheme, StoredModel, WoqfxError, registry
from woqfx_native import _core
from woqfx_native.packed import pack

_PAGE = 4096
_PIECE = 1 << 20
_FACTS = "xxh3 %016x of %016d bytes\n"
_FACTS_LENGTH = len(_FACTS % (0, 0))


class PackCache:
    """The packed weights of one checkpoint, in a folder that several checkpoints may share.

    Raises `WoqfxError` where the folder cannot be written, or the checkpoint has no fingerprint (a model in memory).
    Several threads, and several processes, may use one folder.
    """

    def __init__(self, folder: str | Path, stored: StoredModel) -> None:
        self._stored, self._fingerprint = stored, stored.fingerprint()
        if not self._fingerprint:
            raise WoqfxError(f"{stored.label} is not a checkpoint in files: load it without a pack cache")
        self.folder = Path(folder)

    def can_hold(self, name: str) -> bool:
        """Whether a weight's packed bytes are all that is needed of it: double-quantized scales are held expanded."""
        return not self._stored.weights[name].scheme.double_quant

    def packed(self, name: str) -> Tensor:
        """The bytes of a weight as `woqfx_native.packed.pack` makes them, from a file where there is a good one."""
        weight = self._stored.weights[name]
        what = {"weight": name, "shape": weight.shape, "ordered": weight.ordered, "offsets": weight.offsets}
        text = self._text(what, weight.scheme)
        found = _read(self._path(text), text, weight.shape)
        if found is not None and _all_of(weight.shape, found):
            return found.view(*weight.shape[:-2], -1)
        made = pack(self._stored.read_weight(name))
        self._write(text, made)
        return made

    def joined(
        self, what: Mapping[str, Any], scheme: Scheme, shape: tuple[int, int], make: Callable[[], Sequence[Tensor]]
    ) -> list[Tensor]:
        """Packed weights whose rows, one after the other, are a matrix of `shape` [N, K], as `make` gives them.

        `what` tells, in JSON, this matrix from all others that can be made of the checkpoint with this scheme.
        """
        rows, inputs = shape

        def text(row: int) -> bytes:
            return self._text({**what, "shape": shape, "from row": row}, scheme)

        found, row = list[Tensor](), 0
        while row < rows:
            one = _read(self._path(text(row)), text(row), shape)
            count = 0 if one is None else _rows(one, inputs)
            if one is None or not 0 < count <= rows - row:
                break
            found.append(one)
            row += count
        else:
            return found
        made, row = list(make()), 0
        for one in made:
            self._write(text(row), one)
            row += _core.PackedWeight(one).n
        return made

    def _text(self, what: Mapping[str, Any], scheme: Scheme) -> bytes:
        grid = registry().dtype(scheme.dtype)
        facts = {
            "woqfx packed weight": _core.LAYOUT_VERSION,
            "byte order": sys.byteorder,
            "checkpoint": self._fingerprint,
            **what,
            "scheme": scheme.to_json(),
            "bits": grid.bits,
            "levels": None if grid.levels is None else grid.levels.tolist(),
        }
        return json.dumps(facts).encode() + b"\n"

    def _path(self, text: bytes) -> Path:
        return self.folder / f"{hashlib.sha256(text).hexdigest()[:32]}.packed"

    def _write(self, text: bytes, packed: Tensor) -> None:
        data, path = packed.view(-1).numpy().data, self._path(text)
        head = text + (_FACTS % (xxhash.xxh3_64_intdigest(data), len(data))).encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".") as own:
                new = Path(own, path.name)
                with new.open("wb") as file:
                    file.write(head.ljust(-(-len(head) // _PAGE) * _PAGE, b"\0"))
                    file.write(data)
                new.replace(path)
        except OSError as error:
            remedy = "make room, choose another folder, or load without a pack cache"
            raise WoqfxError(f"cannot write the pack cache {self.folder}: {error.strerror}; {remedy}") from error


def _read(path: Path, text: bytes, shape: tuple[int, ...]) -> Tensor | None:
    """The packed bytes behind `text` in a file; None if there is no good file.

    They are read, not mapped: the kernels read memory in huge pages half as fast again as a file's small ones.
    """
    begin = -(-(len(text) + _FACTS_LENGTH) // _PAGE) * _PAGE
    try:
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            size = status.st_size - begin
            if not stat.S_ISREG(status.st_mode) or not 0 < size <= _most_bytes(shape):
                return None
            head = file.read(begin)
            if not head.startswith(text):
                return None
            packed: Tensor = from_dlpack(_core.weight_memory(size))
            checksum = _fill(packed.numpy().data, file)
    except OSError:
        return None
    facts = (_FACTS % (checksum, size)).encode()
    return packed if head == (text + facts).ljust(begin, b"\0") else None


def _fill(data: memoryview, file: FileIO) -> int:
    """Fill `data` with the rest of a file; the checksum of what there was."""
    checksum = xxhash.xxh3_64()
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]  # of a size that stays in the cache until it is summed up
        count = 0
        while count < len(piece) and (more := file.readinto(piece[count:])):
            count += more
        checksum.update(piece[:count])
    return checksum.intdigest()


def _most_bytes(shape: tuple[int, ...]) -> int:
    """More than any weight of this shape takes, to size what a file may ask for: a float for each number, padded."""
    *lead, n, k = shape
    return prod(lead) * ((n + 64) * (k + 512) * 4 + _PAGE)


def _open_without_waiting(path: str, flags: int) -> int:
    """A pipe under a file's name would keep whoever opens it waiting."""
    return os.open(path, flags | os.O_NONBLOCK)


def _all_of(shape: tuple[int, ...], packed: Tensor) -> bool:
    """Whether the kernels take these bytes as weights of this shape."""
    *lead, n, k = shape
    count = prod(lead)
    return packed.numel() % count == 0 and all(_rows(one, k) == n for one in packed.view(count, -1))


def _rows(packed: Tensor, inputs: int) -> int:
    """How many rows these bytes hold, for the kernels, which check every size in them; 0 if not with so many inputs."""
    try:
        weight = _core.PackedWeight(packed)
    except _core.Error:
        return 0
    return weight.n if weight.k == inputs else 0
