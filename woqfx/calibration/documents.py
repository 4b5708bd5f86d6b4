"""Texts, conversations and tokens in whatever form they come: lists, records, batches of a loader, tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from woqfx.calibration.contract import Chat, Document
from woqfx.errors import CalibrationError

#: Where the texts of a table are, if nobody says: the first of these columns that it has.
COLUMNS = ("text", "messages", "conversations", "prompt", "content", "code", "input_ids")

#: How ShareGPT's conversations name their speakers, in the words of chat templates.
_SPEAKERS = {"human": "user", "gpt": "assistant", "bot": "assistant"}


def documents_of(items: Iterable[Any], column: str | None, label: str) -> Iterator[Document]:
    """The documents in `items`, one after the other; blank texts are left out.

    An item is a text; a conversation; token ids, as a tensor [T] or [B, T] or a list; a record with one of these in
    `column` (by default the first of `COLUMNS` that it has); or a loader's batch with `input_ids` and, if sequences
    were padded, their `attention_mask`. Raises `CalibrationError`, naming the item by its number, for anything else.
    """
    for number, item in enumerate(items, 1):
        yield from _documents(item, column, f"{label}, item {number}")


def is_message(item: Any) -> bool:
    """Whether it is one message of a conversation."""
    return isinstance(item, Mapping) and ({"role", "content"} <= item.keys() or {"from", "value"} <= item.keys())


def _documents(item: Any, column: str | None, place: str) -> Iterator[Document]:
    if isinstance(item, str):
        if item.strip():
            yield item
    elif isinstance(item, Tensor):
        yield from _sequences(item, None, place)
    elif isinstance(item, Mapping):
        name = _column(item, column, place)
        if name == "input_ids":
            yield from _sequences(item[name], item.get("attention_mask"), place)
        else:
            yield from _documents(item[name], None, f"{place}, {name}")
    elif isinstance(item, Sequence) and item and all(is_message(message) for message in item):
        yield _chat(item)
    elif isinstance(item, Sequence) and item and isinstance(item[0], Tensor):
        yield from _sequences(item[0], None, place)  # a loader's batch of inputs, and labels or what else
    elif isinstance(item, Sequence) and item and all(type(number) is int for number in item):
        yield from _sequences(item, None, place)
    else:
        raise CalibrationError(
            f"{place} is {_brief(item)}, where a text, a conversation (a list of messages with role and content), "
            "token ids or a record is expected"
        )


def _column(record: Mapping[str, Any], column: str | None, place: str) -> str:
    if column is not None and column in record:
        return column
    found = next((name for name in COLUMNS if name in record), None)
    if column is not None or found is None:
        wanted = repr(column) if column is not None else f"of {', '.join(COLUMNS)}"
        remedy = "name the column of the texts (column=..., --column)"
        names = ", ".join(repr(name)[:80] for name in list(record)[:20])
        raise CalibrationError(f"{place} has no column {wanted}, but {names or 'none'}; {remedy}")
    return found


def _chat(messages: Sequence[Mapping[str, Any]]) -> Chat:
    return [
        {"role": _SPEAKERS.get(message["from"], message["from"]), "content": message["value"]}
        if "from" in message
        else message
        for message in messages
    ]


def _sequences(ids: Any, mask: Any, place: str) -> Iterator[Tensor]:
    """Each sequence of token ids [T] or [B, T], without the padding that the mask of the same shape marks with 0."""
    rows = _integers(ids, f"{place}: its token ids")
    masks = torch.ones_like(rows) if mask is None else _integers(mask, f"{place}: its attention mask")
    if rows.ndim not in (1, 2) or masks.shape != rows.shape:
        shapes = f"{list(rows.shape)} with a mask {list(masks.shape)}" if mask is not None else str(list(rows.shape))
        raise CalibrationError(f"{place} has token ids of shape {shapes}: [length] or [batch, length] is expected")
    if rows.ndim == 1:
        rows, masks = rows.unsqueeze(0), masks.unsqueeze(0)
    for row, keep in zip(rows, masks.bool(), strict=True):
        where = keep.nonzero().flatten()
        if not len(where):
            raise CalibrationError(f"{place} has a sequence that is all padding, or empty: leave it out")
        first, last = int(where[0]), int(where[-1]) + 1
        if last - first != len(where):
            raise CalibrationError(
                f"{place} has an attention mask with a hole: padding may stand before and after a sequence, not in it"
            )
        yield row[first:last].clone()


def _integers(found: Any, what: str) -> Tensor:
    try:
        tensor = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(f"{what} are no numbers in rows of one length: {error}") from error
    if tensor.is_floating_point() or tensor.is_complex():
        raise CalibrationError(f"{what} are {tensor.dtype}, not whole numbers")
    return tensor.detach().to("cpu", torch.int64)


def _brief(item: Any) -> str:
    text = ascii(item)
    return f"{type(item).__name__} {text if len(text) <= 80 else text[:80] + '...'}"
