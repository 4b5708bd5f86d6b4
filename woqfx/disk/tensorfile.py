"""Safetensors files, read and written one tensor at a time.

Why not the `safetensors` package: it maps the file, so a file that shrinks kills the process (SIGBUS) and mapped
pages count as resident memory; and it writes a file only as a whole, so a killed run starts again from nothing.

The format (https://github.com/huggingface/safetensors, "Format"): eight bytes with the length of the header, little
endian; the header, a JSON object that gives each tensor's dtype, shape and place; then the tensors' bytes, in C order
and little endian, without holes. Tensors here are bytes as they lie on disk, so the machine must be little endian.

Alignment. The format lets no gap stand between tensors, so a tensor's place is a multiple of its element size only if
the sizes before it add up to one. The reference writer sorts by element size, largest first, to have that always.
Readers do not require it: the reference reader, transformers and `TensorFile` read any order. Those that map the file
then hand out an unaligned view, which x86-64 and AArch64 read correctly and a little slower; `TensorFile` copies into
aligned memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import reprlib
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from woqfx.disk.prefetch import Prefetch
from woqfx.errors import OutputError, SourceError, WoqfxError
from woqfx.hugepages import Pages

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self, TypeGuard

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_METADATA = "__metadata__"
_PREFIX = 8  # bytes that hold the header's length
_MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation
_MAX_BYTES = 2**63 - 1  # of a tensor: what a signed file offset can reach

# A hostile header must not become a hostile error message.
_short = reprlib.Repr()
_short.maxstring = 200


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in its file: the bytes from `start` up to `stop`, counted from the file's first byte."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """The tensor's size in bytes."""
        return self.stop - self.start


@dataclass(frozen=True)
class Layout:
    """A file yet to be written: `header` first, then each tensor's bytes in the order of `entries`, without gaps."""

    header: bytes  # with the eight bytes of its length in front
    entries: Mapping[str, Entry]
    size: int  # of the whole file, in bytes


def layout(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> Layout:
    """Compute the header of a file that holds `tensors` (name -> dtype and shape) in the order given.

    The same arguments in the same order give the same bytes. Raises `OutputError` for a tensor that the format cannot
    hold.
    """
    described: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    relative: dict[str, Entry] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        if name == _METADATA:
            raise OutputError(f"a safetensors file cannot hold a tensor named {_METADATA!r}: rename it")
        if dtype not in _NAMES:
            raise OutputError(f"tensor {name!r} has dtype {dtype}, which woqfx cannot write: convert it to {_known()}")
        start, end = end, end + math.prod(shape) * dtype.itemsize
        relative[name] = Entry(dtype, tuple(shape), start, end)
        described[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data begin at a multiple of eight
    if len(text) > _MAX_HEADER:
        raise OutputError(f"a header of {len(text)} bytes passes the format's {_MAX_HEADER}: write more, smaller files")
    begin = _PREFIX + len(text)
    entries = {name: Entry(e.dtype, e.shape, begin + e.start, begin + e.stop) for name, e in relative.items()}
    return Layout(len(text).to_bytes(_PREFIX, "little") + text, entries, begin + end)


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor as the file holds them, without copying: a view of `tensor`."""
    view: memoryview = tensor.detach().view(-1).view(torch.uint8).numpy().data
    return view


class TensorFile:
    """An open safetensors file: the header is read and checked here, a tensor's bytes when `read` asks for them.

    `entries` are in file order, `metadata` is the file's own text, `size` is the whole file's in bytes and
    `header_digest` is the SHA-256 of the header in hexadecimal. Whatever is wrong with the file raises `error`; a
    message names the file and what was found. Reads are positioned, so threads may share one object.

    Symbolic links are followed: which files may be opened is the caller's to decide.
    """

    def __init__(self, path: str | os.PathLike[str], *, error: type[WoqfxError] = SourceError) -> None:
        self.path = Path(path)
        self._error = error
        self._pages = Pages()
        try:
            # Never waits, whatever a hostile folder holds under this name (a pipe would).
            self._file = open(self.path, "rb", buffering=0, opener=_open_without_waiting)
        except OSError as e:
            raise error(f"cannot open {self.path}: {e.strerror}; check the path and its permissions") from e
        self._prefetch = Prefetch(self._file)
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise self._error(f"{self.path} is not a regular file; give a safetensors file")
        self.size = status.st_size
        if self.size < _PREFIX:
            raise self._damaged(f"it has {self.size} bytes, fewer than the {_PREFIX} that begin a safetensors file")
        length = int.from_bytes(self._read_bytes(0, _PREFIX), "little")
        if length > _MAX_HEADER:
            raise self._damaged(f"its header claims {length} bytes, more than the {_MAX_HEADER} the format allows")
        begin = _PREFIX + length
        if begin > self.size:
            raise self._damaged(f"its header claims {length} bytes, but the file ends after {self.size}")
        header = self._read_bytes(_PREFIX, length)
        self.header_digest = hashlib.sha256(header).hexdigest()
        try:
            parsed = _parse(header)
            self.metadata: Mapping[str, str] = _metadata(parsed.pop(_METADATA, {}))
            self.entries: Mapping[str, Entry] = _entries(parsed, begin, self.size)
        except ValueError as e:
            raise self._damaged(str(e)) from e

    def read(self, name: str) -> torch.Tensor:
        """Return the tensor `name` in memory of its own.

        Raises the file's `error` if there is none, if the file has become shorter, or if the device cannot read it.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise self._error(f"{self.path} holds no tensor {name!r}")
        self._prefetch.follow(entry.start, entry.stop)
        tensor = self._pages.empty(entry.shape, entry.dtype)
        self._read_into(raw_bytes(tensor), entry.start)
        return tensor

    def prefetch(self) -> None:
        """Have the system fetch the file's beginning, which will be read soon."""
        self._prefetch.expect(0)

    def _read_bytes(self, start: int, count: int) -> bytes:
        data = bytearray(count)
        self._read_into(memoryview(data), start)
        return bytes(data)

    def _read_into(self, view: memoryview, start: int) -> None:
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._file.fileno(), [view[done:]], start + done)
            except OSError as e:
                raise self._error(f"cannot read {self.path} at byte {start + done}: {e.strerror}") from e
            if count == 0:
                raise self._damaged(f"it ended at byte {start + done} while it was being read; {len(view)} were wanted")
            done += count

    def _damaged(self, reason: str) -> WoqfxError:
        return self._error(f"{self.path} cannot be used: {reason}; fetch or convert the file again")

    def close(self) -> None:
        """Close the file. Tensors that were read stay valid."""
        self._prefetch.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


# From here on a header's faults are ValueErrors that state the fault alone; `TensorFile` adds the file and the remedy.


def _parse(header: bytes) -> dict[str, Any]:
    if not header.startswith(b"{"):
        raise ValueError("its header does not begin with '{'")
    try:
        parsed: dict[str, Any] = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as e:
        raise ValueError(f"its header is not UTF-8 text ({e.reason} at byte {e.start})") from e
    except json.JSONDecodeError as e:
        raise ValueError(f"its header is not JSON ({e})") from e
    except RecursionError as e:
        raise ValueError("its header is nested too deeply") from e
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        [(repeated, _count)] = Counter(key for key, _value in pairs).most_common(1)
        raise ValueError(f"its header has {_short.repr(repeated)} more than once")
    return members


def _metadata(found: object) -> dict[str, str]:
    if not isinstance(found, dict) or not all(_is_text(key) and _is_text(value) for key, value in found.items()):
        raise ValueError(f"{_METADATA} is not an object of texts")
    return found


def _entries(parsed: Mapping[str, Any], begin: int, size: int) -> dict[str, Entry]:
    """Check that the tensors tile the bytes from `begin` to `size`, and return them in file order."""
    entries = {name: _entry(name, described, begin) for name, described in parsed.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    position = begin
    for name, entry in ordered.items():
        if entry.start != position:
            fault = "overlaps the one before it" if entry.start < position else "leaves a hole before it"
            raise ValueError(f"tensor {_short.repr(name)} begins at byte {entry.start}, not {position}: it {fault}")
        position = entry.stop
    if position != size:
        raise ValueError(f"its tensors end at byte {position}, but the file has {size} bytes")
    return ordered


def _entry(name: str, described: object, begin: int) -> Entry:
    try:
        if not _is_text(name):
            raise ValueError("has a name that is not valid Unicode")
        return _placed(described, begin)
    except ValueError as e:
        raise ValueError(f"tensor {_short.repr(name)} {e}") from e


def _placed(described: object, begin: int) -> Entry:
    if not isinstance(described, dict):
        raise ValueError(f"is described by {_short.repr(described)}, not by an object")
    spelled, shape, offsets = described.get("dtype"), described.get("shape"), described.get("data_offsets")
    if not isinstance(spelled, str) or spelled not in _DTYPES:
        raise ValueError(f"has dtype {_short.repr(spelled)}; woqfx reads {_known()}")
    if not _are_counts(shape):
        raise ValueError(f"has shape {_short.repr(shape)}, which is not a list of non-negative integers")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"has data_offsets {_short.repr(offsets)}, which are not two non-negative integers")
    dtype = _DTYPES[spelled]
    span = dtype.itemsize
    for length in shape:
        span *= max(length, 1)  # strides of an empty tensor must be representable too
        if span > _MAX_BYTES:
            raise ValueError(f"has shape {_short.repr(shape)}, too large for any file")
    expected = 0 if 0 in shape else span
    start, stop = offsets
    if stop - start != expected:
        raise ValueError(
            f"has data_offsets {_short.repr(offsets)}, but {spelled} of shape {_short.repr(shape)} "
            f"takes {expected} bytes"
        )
    return Entry(dtype, tuple(shape), begin + start, begin + stop)


def _are_counts(found: object) -> TypeGuard[list[int]]:
    # type() and not isinstance(): JSON's true is an int to Python.
    return isinstance(found, list) and all(type(number) is int and number >= 0 for number in found)


def _is_text(found: object) -> bool:
    """Whether it is a string without lone surrogates, which JSON can spell and UTF-8 cannot."""
    if not isinstance(found, str):
        return False
    try:
        found.encode()
    except UnicodeEncodeError:
        return False
    return True


def _known() -> str:
    return ", ".join(_DTYPES)
