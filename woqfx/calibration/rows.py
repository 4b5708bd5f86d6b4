"""From documents to rows of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from woqfx.calibration.contract import Chat, Document
from woqfx.errors import CalibrationError

if TYPE_CHECKING:
    from woqfx.calibration.request import CalibrationRequest
    from woqfx.calibration.subject import Subject

#: Characters of text that are looked at; what comes later in a larger set is not reached.
MAX_CHARACTERS = 32 << 20

_CHARACTERS = 4  # of a token, about: a passage makes about a row
_AT_A_TIME = 32  # passages that the tokenizer gets


def make_rows(documents: Iterable[Document], subject: Subject, request: CalibrationRequest) -> list[Tensor]:
    """`request.samples` sequences int64 [T], T at most `request.seq_len`.

    Texts and conversations are packed: texts are cut into passages of about a row where their paragraphs end, all are
    shuffled by the request's seed, put into tokens, joined, and cut into rows of exactly `seq_len`; each row begins
    with what the tokenizer puts before a text (`<s>`). Sequences of tokens keep their order; longer ones are cut.

    Raises `CalibrationError` if there are too few, or ids that the model does not know.
    """
    stream = iter(documents)
    first = next(stream, None)
    if first is None:
        raise CalibrationError(f"calibration data {request.label}: there is no text in it, or all its texts are empty")
    everything = _alike(first, stream, request.label)
    if isinstance(first, Tensor):
        rows = list(islice(_cut(everything, request.seq_len), request.samples))
        _check_enough(len(rows), "sequences", request)
    else:
        rows = _packed(everything, subject, request)
    _check_ids(rows, subject)
    return rows


def _alike(first: Document, rest: Iterator[Document], label: str) -> Iterator[Any]:
    """All documents; an error where tokens and texts are mixed, for they are not treated alike."""
    yield first
    for document in rest:
        if isinstance(document, Tensor) != isinstance(first, Tensor):
            raise CalibrationError(f"calibration data {label}: it mixes texts and tokens; give one or the other")
        yield document


def _cut(sequences: Iterable[Tensor], length: int) -> Iterator[Tensor]:
    for sequence in sequences:
        for start in range(0, len(sequence), length):
            yield sequence[start : start + length]


def _packed(documents: Iterator[str | Chat], subject: Subject, request: CalibrationRequest) -> list[Tensor]:
    pieces = _shuffled(list(_pieces(documents, _CHARACTERS * request.seq_len)), request.seed)
    prefix = _prefix(subject.tokenizer)
    length = request.seq_len - len(prefix)
    if length < 1:
        raise CalibrationError(
            f"seq_len {request.seq_len} has no room for text after the {len(prefix)} tokens before it"
        )
    rows: list[Tensor] = []
    rest: list[int] = []
    for ids in _tokenized(pieces, subject):
        rest += ids
        while len(rest) >= length:
            rows.append(torch.tensor(prefix + rest[:length]))
            rest = rest[length:]
            if len(rows) == request.samples:
                return rows
    _check_enough(len(rows), f"rows of {request.seq_len} tokens", request)
    return rows


def _pieces(documents: Iterable[str | Chat], size: int) -> Iterator[str | Chat]:
    left = MAX_CHARACTERS
    for document in documents:
        if isinstance(document, str):
            left -= len(document)
            yield from passages(document, size)
        else:
            left -= sum(len(str(message.get("content"))) for message in document)
            yield document
        if left <= 0:
            return


def passages(text: str, size: int) -> Iterator[str]:
    """Cut a text where paragraphs end, into passages of at least `size` characters and at most twice as many.

    Where no paragraph ends in time, a line or a word does, or nothing. A last passage may be shorter. Joined they are
    the text.
    """
    start = 0
    while len(text) - start > 2 * size:
        end = _end(text, start + size, start + 2 * size)
        yield text[start:end]
        start = end
    if text[start:].strip():
        yield text[start:]


def _end(text: str, low: int, high: int) -> int:
    """Where it is best to cut between `low` and `high`."""
    for mark in ("\n\n", "\n", " "):
        at = text.find(mark, low, high)
        if at >= 0:
            return at + len(mark)
    return low


def _shuffled(pieces: list[str | Chat], seed: int) -> list[str | Chat]:
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))
    return [pieces[index] for index in order.tolist()]


def _tokenized(pieces: Sequence[str | Chat], subject: Subject) -> Iterator[list[int]]:
    """The token ids of each piece; a text ends with an empty line, so that the next one begins afresh."""
    tokenizer = subject.tokenizer
    for start in range(0, len(pieces), _AT_A_TIME):
        some = pieces[start : start + _AT_A_TIME]
        texts = [piece.rstrip() + "\n\n" for piece in some if isinstance(piece, str)]
        of_texts = iter(_ids(tokenizer, texts) if texts else ())
        for piece in some:
            yield next(of_texts) if isinstance(piece, str) else _chat_ids(tokenizer, piece, subject.label)


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    return found


def _chat_ids(tokenizer: Any, chat: Chat, label: str) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise CalibrationError(
            f"the tokenizer of {label} has no chat template to write conversations with: give texts, or a tokenizer "
            "with a template (tokenizer=...)"
        )
    try:
        text = tokenizer.apply_chat_template(list(chat), tokenize=False)
    except Exception as error:  # a template is anyone's program, with its own ideas of roles and their order
        raise CalibrationError(f"the chat template of {label} refuses a conversation of the data: {error}") from error
    (ids,) = _ids(tokenizer, [text])
    return ids


def _prefix(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text."""
    (plain,) = _ids(tokenizer, ["a"])
    full: list[int] = tokenizer("a").input_ids
    start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    return full[:start]


def _check_enough(count: int, what: str, request: CalibrationRequest) -> None:
    if count < request.samples:
        remedy = f"ask for samples={count} (--samples {count})" if count else "ask for a smaller seq_len (--seq-len)"
        raise CalibrationError(
            f"calibration data {request.label} make {count} {what}, where {request.samples} samples were asked for: "
            f"{remedy}, or give more text"
        )


def _check_ids(rows: Sequence[Tensor], subject: Subject) -> None:
    low, high = min(int(row.min()) for row in rows), max(int(row.max()) for row in rows)
    limit = subject.vocabulary
    if low < 0 or (limit is not None and high >= limit):
        wrong = low if low < 0 else high
        raise CalibrationError(
            f"calibration: token id {wrong} is not among the {limit} that {subject.label} knows; "
            "the tokens are another model's: give its own tokenizer"
        )
