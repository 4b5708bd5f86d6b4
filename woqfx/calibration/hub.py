"""Calibration data from the Hugging Face Hub, through the library `datasets`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from woqfx.calibration.contract import CalibrationSet, Document
from woqfx.calibration.documents import documents_of
from woqfx.errors import CalibrationError

if TYPE_CHECKING:
    from woqfx.calibration.request import CalibrationRequest
    from woqfx.calibration.subject import Subject

#: What needs no network; the end of every message about one that failed.
OFFLINE = (
    "What needs no network: python-docs (English), self (the model's own text), a file of your own (.txt, .jsonl, "
    ".json, .csv, .parquet), or a list of texts"
)


@dataclass(frozen=True)
class HubSet(CalibrationSet):
    """A set of texts or conversations on the Hub.

    `path` is `organisation/name`; `arguments` go to `datasets.load_dataset`. `column` None takes the first that looks
    like text. With `join`, the rows are parts of one running text (lines, sentences) and are joined by it. It is
    streamed: no more is fetched than is needed. Code from the Hub is never run.
    """

    name: str
    path: str
    split: str = "train"
    column: str | None = None
    join: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def check(self, subject: Subject, request: CalibrationRequest) -> None:
        """See `CalibrationSet.check`: without the library there is no set."""
        _library(self.name)

    def documents(self, subject: Subject, request: CalibrationRequest) -> Iterable[Document]:
        """See `CalibrationSet.documents`. What the Hub or the library refuses is a `CalibrationError`."""
        column = request.column or self.column
        documents = documents_of(self._rows(request.split or self.split), column, self.name)
        if self.join is None:
            yield from documents
        else:
            yield self.join.join(document for document in documents if isinstance(document, str))

    def _rows(self, split: str) -> Iterable[Any]:
        datasets = _library(self.name)
        try:
            yield from datasets.load_dataset(self.path, split=split, streaming=True, **self.arguments)
        except Exception as error:  # the network, the Hub, the library's own: of many unrelated classes
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CalibrationError(
                f"calibration data {self.name}: the Hugging Face Hub did not give {self.path} (split {split}): "
                f"{type(error).__name__}: {reason}. Check the name, the split and the network. {OFFLINE}"
            ) from error


def _library(name: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise CalibrationError(
            f"calibration data {name} come through the library datasets, which is not installed: "
            f"pip install 'woqfx[datasets]'. {OFFLINE}"
        ) from error
