"""Texts, conversations and tokens, in every form."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

from woqfx import CalibrationError
from woqfx.calibration.documents import documents_of

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
SHARE_GPT = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]


def read(*items, column=None):
    found = documents_of(items, column, "data")
    return [document.tolist() if isinstance(document, torch.Tensor) else document for document in found]


@pytest.mark.parametrize(
    ("item", "documents"),
    [
        ("a text", ["a text"]),
        (" \n", []),
        (CHAT, [CHAT]),
        (SHARE_GPT, [CHAT]),
        ({"text": "a text", "id": 4}, ["a text"]),
        ({"id": 4, "messages": CHAT}, [CHAT]),
        ({"conversations": SHARE_GPT, "source": "web"}, [CHAT]),
        ({"code": "x = 1", "content": "text"}, ["text"]),
        ({"text": ""}, []),
        ([5, 6, 7], [[5, 6, 7]]),
        (torch.tensor([5, 6, 7], dtype=torch.int32), [[5, 6, 7]]),
        (torch.tensor([[5, 6], [7, 8]]), [[5, 6], [7, 8]]),
        ({"input_ids": [5, 6, 7]}, [[5, 6, 7]]),
        ({"input_ids": torch.tensor([[5, 6], [7, 8]]), "labels": None}, [[5, 6], [7, 8]]),
        ((torch.tensor([[5, 6]]), torch.tensor([1])), [[5, 6]]),
        (BatchEncoding({"input_ids": [[5, 6], [7, 0]], "attention_mask": [[1, 1], [1, 0]]}), [[5, 6], [7]]),
        ({"input_ids": [[0, 5], [7, 8]], "attention_mask": [[0, 1], [1, 1]]}, [[5], [7, 8]]),
        ({"input_ids": torch.tensor([0, 5, 0]), "attention_mask": torch.tensor([False, True, False])}, [[5]]),
    ],
    ids=lambda value: json.dumps(value, default=lambda other: getattr(other, "tolist", other.__str__)())[:60],
)
def test_every_form(item, documents):
    assert read(item) == documents


def test_a_column_by_name():
    assert read({"text": "no", "body": "yes"}, {"body": CHAT}, column="body") == ["yes", CHAT]


def test_a_data_loader():
    loader = DataLoader(TensorDataset(torch.arange(12).view(4, 3)), batch_size=2)
    assert read(*loader) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_documents_come_one_at_a_time():
    def endless():
        while True:
            yield "again"

    assert next(iter(documents_of(endless(), None, "data"))) == "again"


def test_a_sequence_does_not_hold_on_to_its_batch():
    batch = torch.arange(6).view(2, 3)
    first, _ = documents_of([batch], None, "data")
    assert first.untyped_storage().nbytes() == 3 * 8


@pytest.mark.parametrize(
    ("items", "column", "says"),
    [
        ([4], None, "data, item 1 is int 4, where a text, a conversation"),
        (["ok", None], None, "data, item 2 is NoneType None"),
        ([[]], None, r"item 1 is list \[\]"),
        ([["a", "b"]], None, r"item 1 is list \['a', 'b'\]"),
        ([[True]], None, "item 1 is list"),
        ([{"txt": "a"}], None, "item 1 has no column of text, messages, .* but 'txt'; name the column"),
        ([{"text": "a"}, {"body": "b"}], "text", "item 2 has no column 'text', but 'body'; name the column"),
        ([{}], None, "but none; name the column"),
        ([{"text": 5}], None, "item 1, text is int 5"),
        ([{"text": {"text": {"text": 1.5}}}], None, "item 1, text, text, text is float 1.5"),
        ([torch.tensor([0.5])], None, "token ids are torch.float32, not whole numbers"),
        ([torch.tensor(3)], None, r"token ids of shape \[\]"),
        ([torch.zeros(1, 2, 3, dtype=torch.int64)], None, r"token ids of shape \[1, 2, 3\]"),
        ([torch.zeros(0, dtype=torch.int64)], None, "all padding, or empty"),
        ([torch.zeros(2, 0, dtype=torch.int64)], None, "all padding, or empty"),
        ([{"input_ids": [[1, 2], [3]]}], None, "token ids are no numbers in rows of one length"),
        ([{"input_ids": [1], "attention_mask": [0]}], None, "all padding, or empty: leave it out"),
        ([{"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}], None, "a mask with a hole|mask with a hole"),
        ([{"input_ids": [1, 2], "attention_mask": [1]}], None, r"shape \[2\] with a mask \[1\]"),
        ([{"input_ids": "text"}], None, "token ids are no numbers"),
        ([SimpleNamespace(text="a" * 1000)], None, r"item 1 is SimpleNamespace .{80,90}\.\.\.,"),
    ],
)
def test_what_is_none_of_these_is_named(items, column, says):
    with pytest.raises(CalibrationError, match=says):
        read(*items, column=column)
