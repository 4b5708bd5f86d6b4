"""A model's tokenizer, as transformers reads it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from woqfx.errors import SourceError
from woqfx.source.gguf_file import GGUFFile
from woqfx.source.hub import resolve

# A folder without any of them has no tokenizer; whether one with some of them has, transformers knows.
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
# GPT-2's way, but each digit apart, by llama.cpp's names for it.
_DIGIT_BY_DIGIT = frozenset({"smollm", "codeshell", "starcoder", "refact", "command-r", "exaone"})


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer in a model's folder or GGUF file, or on the Hub. Raises `SourceError`.

    Code of the folder's own is not run, and nobody is asked whether it should be, as transformers does at a terminal.
    """
    from transformers import AutoTokenizer

    path = resolve(model)
    try:
        if path.is_file():
            return _of_gguf(path)
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers' parsers on files of any kind
        there = path.is_file() or any((path / name).is_file() for name in _FILES)
        what = f"tokenizer that transformers can read: {str(error).splitlines()[0]}" if there else "tokenizer"
        raise SourceError(
            f"{path} has no {what}; put the original's tokenizer.json and tokenizer_config.json there"
        ) from error


def _of_gguf(path: Path) -> Any:
    """The tokenizer in a GGUF file. Transformers does not know all of the names for ways to cut text before BPE."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    with closing(GGUFFile(path)) as file:
        cutting = file.metadata.get("tokenizer.ggml.pre")
    if cutting in _DIGIT_BY_DIGIT:
        from tokenizers import pre_tokenizers

        digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    return tokenizer
