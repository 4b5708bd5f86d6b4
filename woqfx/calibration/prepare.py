"""From what was asked for to batches of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from woqfx.calibration.contract import CalibrationSet, Document
from woqfx.calibration.data import Calibration
from woqfx.calibration.documents import documents_of, is_message
from woqfx.calibration.files import READERS, read_records
from woqfx.calibration.hub import HubSet
from woqfx.calibration.request import CalibrationRequest, is_path
from woqfx.calibration.rows import make_rows
from woqfx.calibration.subject import Subject
from woqfx.errors import CalibrationError, UnknownNameError
from woqfx.plugins import registry
from woqfx.source import Source

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_calibration(request: CalibrationRequest, source: Source) -> None:
    """Raise `CalibrationError` for what is known to fail before any data are read or any text is put into tokens."""
    subject = Subject(source, request.tokenizer)
    _check_length(request, subject)
    find_set(request).check(subject, request)


def prepare_calibration(request: CalibrationRequest, source: Source) -> Calibration:
    """Read the data, and make them into tokens for the model of `source`. Raises `CalibrationError`."""
    subject = Subject(source, request.tokenizer)
    _check_length(request, subject)
    found = find_set(request)
    found.check(subject, request)
    rows = make_rows(found.documents(subject, request), subject, request)
    return Calibration.of(rows, f"{request.label}: {len(rows)} sequences, {sum(map(len, rows))} tokens")


def find_set(request: CalibrationRequest) -> CalibrationSet:
    """The set that the request is about: one by name, a file, one on the Hub, or the caller's own, set or data.

    Raises `CalibrationError`, which lists what there is.
    """
    data = request.data
    if isinstance(data, CalibrationSet):
        return data
    named = data in registry().names("calibration set") if isinstance(data, str) else False
    if isinstance(data, Path) or (isinstance(data, str) and not named and is_path(data)):
        return _File(Path(data))
    if not isinstance(data, str):
        return _Given(data, request.label)
    if not named and _HUB_NAME.fullmatch(data):
        return HubSet(data, data)
    try:
        return registry().calibration_set(data)
    except UnknownNameError as error:
        raise CalibrationError(
            f"{error} Or give a file ({', '.join(READERS)}), a set on the Hugging Face Hub (organisation/name), or "
            "from Python a list of texts"
        ) from error


def _check_length(request: CalibrationRequest, subject: Subject) -> None:
    if subject.positions is not None and request.seq_len > subject.positions:
        raise CalibrationError(
            f"calibration: seq_len {request.seq_len} is beyond the {subject.positions} positions of {subject.label}; "
            f"ask for seq_len={subject.positions} (--seq-len {subject.positions}) or less"
        )


@dataclass(frozen=True)
class _File(CalibrationSet):
    """A file of the user's."""

    path: Path

    def check(self, subject: Subject, request: CalibrationRequest) -> None:
        next(iter(read_records(self.path, request.column)), None)

    def documents(self, subject: Subject, request: CalibrationRequest) -> Iterable[Document]:
        return documents_of(read_records(self.path, request.column), request.column, str(self.path))


@dataclass(frozen=True, eq=False)
class _Given(CalibrationSet):
    """What a caller holds in memory."""

    data: Any
    label: str

    def check(self, subject: Subject, request: CalibrationRequest) -> None:
        if not isinstance(self.data, Iterable):
            raise CalibrationError(
                f"calibration data are {type(self.data).__name__}, where a name, a file, a list of texts or "
                "conversations, tokens, a datasets.Dataset or a DataLoader is expected"
            )

    def documents(self, subject: Subject, request: CalibrationRequest) -> Iterable[Document]:
        return documents_of(self._items(request.split), request.column, f"calibration data, {self.label}")

    def _items(self, split: str | None) -> Iterable[Any]:
        data = self.data
        if isinstance(data, Mapping) and "input_ids" not in data:
            return self._split(data, split)
        if isinstance(data, Tensor | Mapping):
            return [data]
        if isinstance(data, list | tuple) and data and all(is_message(item) for item in data):
            return [data]  # one conversation
        return data  # type: ignore[no-any-return]

    def _split(self, data: Mapping[str, Iterable[Any]], split: str | None) -> Iterable[Any]:
        """Of a `DatasetDict`, or any mapping of splits, the one that was asked for."""
        if split is None or split not in data:
            names = ", ".join(map(str, data))
            wanted = "name one" if split is None else f"{split!r} is not one of them"
            raise CalibrationError(f"calibration data, {self.label}: it has the splits {names}; {wanted} (split=...)")
        return data[split]
