"""Calibration data in files, which may be large, damaged or hostile: read a part at a time, and no more than needed."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from woqfx.calibration.documents import COLUMNS
from woqfx.errors import CalibrationError

MAX_LINE = 16 << 20  # characters of one record
MAX_JSON = 256 << 20  # bytes: a .json file is parsed as a whole


def read_records(path: Path, column: str | None) -> Iterator[Any]:
    """The records of a file, one after the other: what `documents_of` takes as items.

    Of a .txt file, that is its text; of .jsonl, a JSON value for each line; of .json, the members of a list (or of the
    only list in an object); of .csv and .parquet, a mapping for each row. Raises `CalibrationError`.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise CalibrationError(f"{path} is not a file of calibration data that woqfx reads: {', '.join(READERS)}")
    if not path.is_file():
        found = f"{path} is not a regular file" if path.exists() else f"there is no file {path}"
        raise CalibrationError(
            f"{found}: check the path, or give the name of a set, such as python-docs, which needs no file"
        )
    try:
        yield from reader(path, column)
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8 text: {error}; convert it first") from error
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror or error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; a byte-order mark is not part of the first."""
    with path.open(encoding="utf-8-sig") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise CalibrationError(f"{path}, line {number} has more than {MAX_LINE} characters; split it")
            yield number, line


def _text(path: Path, column: str | None) -> Iterator[str]:
    """The text in parts that end where a line does."""
    part: list[str] = []
    size = 0
    for _, line in _lines(path):
        part.append(line)
        size += len(line)
        if size >= MAX_LINE:
            yield "".join(part)
            part, size = [], 0
    yield "".join(part)


def _json_lines(path: Path, column: str | None) -> Iterator[Any]:
    for number, line in _lines(path):
        if line.strip():
            yield _parsed(line, f"{path}, line {number}")


def _json(path: Path, column: str | None) -> Iterator[Any]:
    with path.open("rb") as file:
        data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise CalibrationError(f"{path} has more than {MAX_JSON} bytes; make it .jsonl, a record on each line")
    found = _parsed(data.decode("utf-8-sig"), str(path))
    lists = [value for value in found.values() if isinstance(value, list)] if isinstance(found, dict) else [found]
    if len(lists) != 1 or not isinstance(lists[0], list):
        kind = "an object with no list, or several," if isinstance(found, dict) else f"a {type(found).__name__}"
        raise CalibrationError(f"{path} holds {kind} where a list of texts, conversations or records is expected")
    yield from lists[0]


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise CalibrationError(f"{place} is nested too deeply to be data") from None
    except ValueError as error:
        raise CalibrationError(f"{place} is not valid JSON: {error}") from error


def _csv(path: Path, column: str | None) -> Iterator[Mapping[str, Any]]:
    rows = csv.DictReader(line for _, line in _lines(path))
    try:
        for row in rows:
            yield {name: value or "" for name, value in row.items() if name is not None}
    except csv.Error as error:
        raise CalibrationError(
            f"{path}, line {rows.line_num} is not CSV: {error}; .jsonl has no such limits"
        ) from error


def _parquet(path: Path, column: str | None) -> Iterator[Mapping[str, Any]]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise CalibrationError(f"reading {path} needs pyarrow: pip install 'woqfx[datasets]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [next((name for name in (column, *COLUMNS) if name in names), names[0])] if names else None
            for batch in file.iter_batches(256, columns=wanted):
                yield from batch.to_pylist()
    except Exception as error:  # pyarrow's own errors have no class in common with each other but this
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CalibrationError(f"{path} is not a parquet file that pyarrow reads: {reason}") from error


READERS: Mapping[str, Callable[[Path, str | None], Iterator[Any]]] = {
    ".txt": _text,
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
