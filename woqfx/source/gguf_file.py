"""GGUF files, read one tensor at a time.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian. The header is
parsed here because the `gguf` package takes seconds for a vocabulary and trusts the counts in the file, and data is
read by position, since a mapped file that shrinks kills the process. The blocks are the package's business.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from woqfx.disk.prefetch import Prefetch
from woqfx.errors import SourceError
from woqfx.source.base import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_RANK = 4  # GGML_MAX_DIMS
_LONG = 1 << 16  # bytes; of a metadata entry. Vocabularies and merges are longer, settings are not.


@dataclass(frozen=True)
class _Block:
    """Where a tensor lies in the file, in rows of `GGMLQuantizationType` blocks."""

    kind: Any
    start: int
    rows: tuple[int, ...]  # the shape of the bytes

    @property
    def nbytes(self) -> int:
        return prod(self.rows)


class GGUFFile:
    """An open GGUF file. `tensors` are what `read` returns: float32, in torch's order of dimensions.

    `metadata` holds the numbers and texts of the header, not its arrays. Raises `SourceError`, naming the
    file, if it is damaged, truncated or no GGUF file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise SourceError(f"{path} is not a file; give a .gguf file or a model's folder")
        try:
            with path.open("rb") as file:
                header = _Header(file, path.stat().st_size)
                self._size = header.size
                self._entries = header.entries
                self._table = header.table
                self.metadata: Mapping[str, Any] = header.metadata
                self._blocks = header.blocks
                self.tensors: Mapping[str, TensorInfo] = header.tensors
            self.architecture = str(self.metadata["general.architecture"])
        except OSError as error:
            raise SourceError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error
        except KeyError as error:
            raise SourceError(f"{path} is a GGUF file without {error}; convert it again") from error
        except ValueError as error:
            raise SourceError(f"{path} cannot be used: {error}; fetch or convert the file again") from error
        self._file = path.open("rb", buffering=0)
        self._prefetch = Prefetch(self._file)

    def type_of(self, name: str) -> str:
        """How the tensor `name` is stored, as GGML calls it: `F32`, `Q4_0` and so on."""
        return str(self._blocks[name].kind.name)

    def bytes_of(self, name: str) -> torch.Tensor:
        """The tensor `name` as it is stored: uint8, a row of blocks for each row of weights."""
        block = self._blocks[name]
        self._prefetch.follow(block.start, block.start + block.nbytes)
        data = np.empty(block.rows, np.uint8)
        view, done = data.reshape(-1).data, 0
        while done < block.nbytes:
            count = os.preadv(self._file.fileno(), [view[done:]], block.start + done)
            if count == 0:
                raise SourceError(f"{self.path} ended within {name} while it was being read; fetch it again")
            done += count
        return torch.from_numpy(data)

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name`, dequantized."""
        from gguf import dequantize

        block = self._blocks[name]
        try:
            values = dequantize(self.bytes_of(name).numpy(), block.kind)
        except NotImplementedError as error:
            raise SourceError(
                f"{self.path}: the gguf package cannot dequantize {name} ({block.kind.name}); convert it to F16 or Q8_0"
            ) from error
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32).reshape(self.tensors[name].shape))

    def fingerprint(self) -> str:
        """A digest of the header, the size and the time of the last change."""
        status = os.fstat(self._file.fileno())
        digest = hashlib.sha256(repr((status.st_size, status.st_mtime_ns)).encode())
        for part in (*self._entries.values(), self._table):
            digest.update(part)
        return digest.hexdigest()

    @contextmanager
    def without_vocabulary(self) -> Iterator[Path]:
        """A file with this one's header, less its long arrays, and no data; removed at the end.

        For readers of the settings alone, which would take seconds for the arrays.
        """
        entries = [entry for entry in self._entries.values() if len(entry) <= _LONG]
        header = struct.pack("<4sIQQ", b"GGUF", 3, len(self._blocks), len(entries)) + b"".join(entries) + self._table
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, self.path.name)
            path.write_bytes(header)
            os.truncate(path, len(header) + self._size)  # a hole: the data's place, but no data
            yield path

    def close(self) -> None:
        """Close the file. Tensors that were read stay valid."""
        self._prefetch.close()
        self._file.close()


class _Header:
    """The parsed header. Its faults are ValueErrors that state the fault alone."""

    def __init__(self, file: Any, size: int) -> None:
        self._file = file
        self.size = size
        magic, version, tensor_count, entry_count = self._unpack("<4sIQQ")
        if magic != b"GGUF":
            raise ValueError("it does not begin with the letters GGUF")
        if version not in (2, 3):
            raise ValueError(f"it is GGUF version {version}, and only 2 and 3 in little-endian order are read")
        self.metadata: dict[str, Any] = {}
        self.entries: dict[str, bytes] = {}
        for _ in range(entry_count):
            self._entry()
        begin = file.tell()
        table = [self._tensor() for _ in range(tensor_count)]
        self.table = self._again(begin)
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment!r}, not a power of two")
        data = -(-file.tell() // alignment) * alignment
        self.tensors: dict[str, TensorInfo] = {}
        self.blocks: dict[str, _Block] = {}
        for name, shape, kind, offset in table:
            if offset % alignment:
                raise ValueError(f"tensor {name[:200]!r} begins at {offset}, no multiple of {alignment}")
            self._place(name, shape, kind, data + offset)
        self._check_overlaps()

    def _place(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        named = GGMLQuantizationType(kind)  # raises ValueError with the number
        elements, nbytes = GGML_QUANT_SIZES[named]
        if name in self.blocks:
            raise ValueError(f"it holds the tensor {name[:200]!r} twice")
        if not shape or shape[-1] % elements:
            raise ValueError(f"tensor {name[:200]!r} of shape {list(shape)} is no whole number of {named.name} blocks")
        block = _Block(named, start, (*shape[:-1], shape[-1] // elements * nbytes))
        if start + block.nbytes > self.size:
            raise ValueError(
                f"tensor {name[:200]!r} ends at byte {start + block.nbytes}, but the file has {self.size}; "
                "it is truncated"
            )
        self.tensors[name] = TensorInfo(shape, torch.float32)
        self.blocks[name] = block

    def _check_overlaps(self) -> None:
        end, before = 0, ""
        for name, block in sorted(self.blocks.items(), key=lambda item: item[1].start):
            if block.start < end:
                raise ValueError(f"tensors {before[:200]!r} and {name[:200]!r} overlap")
            end, before = block.start + block.nbytes, name

    def _entry(self) -> None:
        begin = self._file.tell()
        key = self._text()
        if key in self.entries:
            raise ValueError(f"its header has {key[:200]!r} more than once")
        (kind,) = self._unpack("<I")
        if kind == _ARRAY:
            self._skip_array()
        else:
            self.metadata[key] = self._text() if kind == _STRING else self._unpack(f"<{_scalar(kind)}")[0]
        self.entries[key] = self._again(begin)

    def _skip_array(self) -> None:
        kind, count = self._unpack("<IQ")
        if kind == _STRING:
            for _ in range(count):
                self._take(self._unpack("<Q")[0])
        else:  # arrays of arrays are in the format, but in no file
            self._take(count * struct.calcsize(_scalar(kind)))

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text()
        (rank,) = self._unpack("<I")
        if rank > _MAX_RANK:
            raise ValueError(f"tensor {name[:200]!r} has {rank} dimensions")
        dimensions = self._unpack(f"<{rank}Q")
        kind, offset = self._unpack("<IQ")
        return name, dimensions[::-1], kind, offset

    def _text(self) -> str:
        return self._take(self._unpack("<Q")[0]).decode("utf-8")

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _take(self, count: int) -> bytes:
        # Checked first, so that a hostile count asks for no memory.
        data: bytes = self._file.read(count) if count <= self.size else b""
        if len(data) < count:
            raise ValueError("it ends within its header; it is truncated or damaged")
        return data

    def _again(self, begin: int) -> bytes:
        """The bytes from `begin` to here, once more."""
        end = self._file.tell()
        self._file.seek(begin)
        return self._take(end - begin)


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"its header holds a value of the unknown type {kind}")
    return _SCALARS[kind]
