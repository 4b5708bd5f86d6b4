from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_models import save_tokenizer, tiny_model

import woqfx

if TYPE_CHECKING:
    from woqfx.generating import TextGenerator


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama with a tokenizer of bytes and a chat template."""
    folder: Path = tmp_path_factory.mktemp("langchain") / "llama"
    tiny_model("llama", vocab_size=259, max_position_embeddings=2048).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5 with a tokenizer of bytes."""
    folder: Path = tmp_path_factory.mktemp("langchain") / "t5"
    tiny_model("t5", vocab_size=259, eos_token_id=2).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny llama, quantized."""
    out: Path = tmp_path_factory.mktemp("langchain") / "quantized"
    woqfx.quantize(tiny_llama, dtype="nf4", out=out, progress="none")
    return out


@pytest.fixture(scope="session")
def real_checkpoint(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 at 8 bits, computed with 8 bits."""
    out: Path = tmp_path_factory.mktemp("langchain") / "smollm2"
    woqfx.quantize(smollm2, dtype="int8", compute_dtype="int8", out=out, progress="none")
    return out


@pytest.fixture(scope="session")
def real_generator(real_checkpoint: Path) -> TextGenerator:
    """SmolLM2, loaded once for all tests."""
    from woqfx.langchain import ChatWoqfx

    return ChatWoqfx(model=str(real_checkpoint)).load()
