"""`python-docs`: the topics of Python's own help, English prose about a language that every installation carries."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping

from woqfx import CalibrationError, CalibrationRequest, CalibrationSet, Document, Subject


class PythonDocs(CalibrationSet):
    """The topics of Python's own help: 465 kB of English that need no network."""

    name = "python-docs"

    def check(self, subject: Subject, request: CalibrationRequest) -> None:
        """See `CalibrationSet.check`."""
        _topics()

    def documents(self, subject: Subject, request: CalibrationRequest) -> Iterable[Document]:
        """One document for each topic, in alphabetical order."""
        topics = _topics()
        return [topics[name] for name in sorted(topics)]


def _topics() -> Mapping[str, str]:
    try:
        topics: Mapping[str, str] = importlib.import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError) as error:
        raise CalibrationError(
            "calibration data python-docs: this Python comes without the topics of its help (pydoc_data.topics); give "
            "a file of text, a list of texts, or the set 'self'"
        ) from error
    return topics
