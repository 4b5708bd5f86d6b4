"""`self`: text that the model itself writes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from woqfx import CalibrationError, CalibrationRequest, CalibrationSet, Document, Subject
from woqfx_calibration import cache

_VERSION = 1  # of the way of writing: part of the cache's key
_NEW = 0.5  # of a row that must not have been there before
_ROUNDS = 4  # of writing anew what repeated itself


class OwnText(CalibrationSet):
    """Text that the model itself writes, sampled from a seed: for languages and domains that no other set speaks.

    A model's own samples stand for the data it was trained on (LLM-QAT, arXiv 2305.17888). Rows begin as the texts of
    the training data did, and one that repeats itself or another is written anew. The same model and seed give the
    same text, which is cached. The whole float model is in memory while it writes.
    """

    name = "self"

    def check(self, subject: Subject, request: CalibrationRequest) -> None:
        """See `CalibrationSet.check`: a model is needed that writes from left to right."""
        structure: Any = subject.structure
        able = getattr(structure, "can_generate", lambda: False)()
        if not able or structure.config.is_encoder_decoder or subject.vocabulary is None:
            raise CalibrationError(
                f"calibration data self: {subject.label} ({type(structure).__name__}) is no model that writes from "
                "left to right; take python-docs (English), a file or list of texts, or a set of the Hugging Face Hub"
            )

    def documents(self, subject: Subject, request: CalibrationRequest) -> Iterable[Document]:
        """Rows of `request.seq_len` tokens."""
        asked = f"{_VERSION} {torch.__version__} {request.samples} {request.seq_len} {request.seed} {subject.digest()}"
        key = hashlib.sha256(asked.encode()).hexdigest()
        found = cache.recall(key, request.samples, request.seq_len)
        if found is None:
            found = _written(subject, request)
            cache.remember(key, found)
        return found


def _written(subject: Subject, request: CalibrationRequest) -> list[Tensor]:
    from woqfx_calibration.sampling import Novelty, write_rows

    model = subject.load()
    generator = torch.Generator().manual_seed(request.seed)
    novelty = Novelty()
    rows: list[Tensor] = []
    for _ in range(_ROUNDS):
        starts = _starts(subject, request.samples - len(rows), generator)
        seed = int(torch.randint(1 << 62, (), generator=generator))
        rows += [row for row in write_rows(model, starts, request.seq_len, seed) if novelty.take(row, _NEW)]
        if len(rows) == request.samples:
            return rows
    raise CalibrationError(
        f"calibration data self: {subject.label} repeats itself: {len(rows)} rows of {request.samples} are new after "
        f"{_ROUNDS} rounds; ask for fewer (--samples), or take another set"
    )


def _starts(subject: Subject, count: int, generator: torch.Generator) -> Tensor:
    """What each row begins with, int64 [count, 1]: the token before a text in training, so that such texts follow.

    For a model that names none, a token drawn from the vocabulary.
    """
    structure: Any = subject.structure
    config = structure.config.get_text_config()
    assert subject.vocabulary is not None
    for token in (config.bos_token_id, config.eos_token_id):
        if isinstance(token, int) and 0 <= token < subject.vocabulary:
            return torch.full((count, 1), token)
    return torch.randint(subject.vocabulary, (count, 1), generator=generator)
