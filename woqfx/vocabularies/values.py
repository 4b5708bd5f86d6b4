"""Values that several libraries write in ways of their own: types, bits, texts for calibration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from woqfx.calibration.contract import CalibrationSet, Document
from woqfx.calibration.documents import documents_of
from woqfx.errors import WoqfxError
from woqfx.vocabularies.vocabulary import Reading

if TYPE_CHECKING:
    from woqfx.calibration.request import CalibrationRequest
    from woqfx.calibration.subject import Subject

#: The names that torch and the original have for what woqfx calls by one name.
_SHORT = {"float32": "fp32", "float": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"}


def float_name(value: Any) -> str:
    """`torch.float32`, "float32" and "fp32" as "fp32"; what is none of them as it is."""
    name = str(value).removeprefix("torch.")
    return _SHORT.get(name, name)


def compute_dtype(reading: Reading, name: str, value: Any) -> None:
    """A type of arithmetic; None is float32, as it is for bitsandbytes and the original."""
    found = "fp32" if value is None else float_name(value)
    if found == "fp16":
        reading.refuse(name, "CPUs have no fp16 arithmetic worth having: ask for float32 or bfloat16")
    else:
        reading.ask(compute_dtype=found)


@dataclass(frozen=True, eq=False)
class TextsAsTheyAre(CalibrationSet):
    """A caller's texts, each of which is one sequence of its own, not packed with others and not longer than asked."""

    texts: tuple[str, ...]
    name: str = "texts of the caller's, each by itself"

    def documents(self, subject: Subject, request: CalibrationRequest) -> Iterable[Document]:
        """See `CalibrationSet.documents`: token ids, with what the tokenizer puts around a text."""
        import torch

        for text in self.texts:
            ids = subject.tokenizer(text, verbose=False).input_ids
            yield torch.tensor(ids[: request.seq_len], dtype=torch.int64)


def ask_for_data(reading: Reading, name: str, data: Any, most: int | None = None) -> None:
    """Calibrate on a caller's texts, token ids or batches: on all of them, or `most`, one sequence for each."""
    if isinstance(data, Iterator):
        reading.refuse(name, "it can be gone through only once; give a list, or a DataLoader")
        return
    try:
        items = list(data if most is None else islice(data, most))
        if items and all(isinstance(item, str) and item.strip() for item in items):
            reading.ask(calibration=TextsAsTheyAre(tuple(items)), samples=len(items))
            return
        sequences = list(documents_of(items, None, name))
    except (TypeError, WoqfxError) as error:
        reading.refuse(name, str(error))
        return
    if not sequences or any(isinstance(one, str | list) for one in sequences):
        reading.refuse(name, "it holds texts, or token ids with or without attention masks, at least one of them")
        return
    reading.ask(calibration=sequences, samples=len(sequences))
