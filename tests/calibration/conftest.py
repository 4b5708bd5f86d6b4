"""A tiny model with a tokenizer of bytes: a character is a token, so that what becomes of a text can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import save_tokenizer, tiny_model

from woqfx.source import Source, open_source


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama", vocab_size=259).save_pretrained(path)
    save_tokenizer(path)
    return path


@pytest.fixture
def source(folder: Path) -> Source:
    return open_source(folder)
