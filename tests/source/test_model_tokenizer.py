"""A model's tokenizer: what is said where there is none, or none that can be read."""

from __future__ import annotations

import pytest

from woqfx.errors import SourceError
from woqfx.source.tokenizer import load_tokenizer


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": "{}"}, r"has no tokenizer; put the original's tokenizer\.json"),
        ({"tokenizer.json": "{"}, r"has no tokenizer that transformers can read: .+; put the original's"),
    ],
    ids=["none", "damaged"],
)
def test_what_is_missing_is_told(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        load_tokenizer(tmp_path)
