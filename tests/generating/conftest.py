from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tokenizer, tiny_model
from transformers import AutoTokenizer

from woqfx.generating import TextGenerator


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One token a byte, and a chat template."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def generator(tokenizer: Any) -> TextGenerator:
    """A random llama."""
    return TextGenerator(tiny_model("llama", vocab_size=259, max_position_embeddings=2048), tokenizer)
