"""From a `tokenizer.json` to the metadata that llama.cpp reads: byte-level BPE, as GPT-2 and its followers have it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf

from woqfx.errors import CheckpointError

TOKENIZER = "tokenizer.json"
#: What of a model's files the gguf package takes special tokens and the chat template from.
_READ = (TOKENIZER, "tokenizer_config.json", "chat_template.jinja", "chat_template.json", "config.json")

# llama.cpp knows the ways to cut text by names; here are the patterns of those that models of these families have.
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_ENDINGS}|{_WORDS}|\p{{N}}|{_REST}": "qwen2",
}


def describe_tokenizer(writer: gguf.GGUFWriter, files: Mapping[str, bytes], vocabulary: int, label: str) -> None:
    """Add a model's tokenizer, from its `files`, to the metadata; a model without one gets none.

    `vocabulary` is the number of rows of the embedding. Raises `CheckpointError` for kinds of tokenizers that are not
    written.
    """
    if TOKENIZER not in files:
        writer.add_tokenizer_model("no_vocab")
        return
    try:
        tokenizer = json.loads(files[TOKENIZER])
        tokens, kinds = _tokens(tokenizer, vocabulary)
        cut = _cutting(tokenizer)
        begins = _begins_with_special(tokenizer)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{label}: {TOKENIZER} cannot be understood: {error}") from error
    if not cut:
        raise CheckpointError(
            f"{label}: {TOKENIZER} cuts text in a way that has no name in GGUF (written is byte-level BPE as in GPT-2, "
            "SmolLM, Llama 3 and Qwen 2); convert the original model with llama.cpp"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_add_bos_token(begins)
    _add_special(writer, files)


def _tokens(tokenizer: dict[str, Any], vocabulary: int) -> tuple[list[str], list[int]]:
    """Each token's text and kind, by number; numbers that none has are marked as unused."""
    tokens = [f"[PAD{number}]" for number in range(vocabulary)]
    kinds = [int(gguf.TokenType.UNUSED)] * vocabulary
    for text, number, kind in _entries(tokenizer):
        if not 0 <= number < vocabulary:
            raise ValueError(f"token {text!r} has the number {number}, and the embedding {vocabulary} rows")
        tokens[number], kinds[number] = text, int(kind)
    return tokens, kinds


def _entries(tokenizer: dict[str, Any]) -> Iterator[tuple[str, int, gguf.TokenType]]:
    for text, number in tokenizer["model"]["vocab"].items():
        yield text, number, gguf.TokenType.NORMAL
    for token in tokenizer["added_tokens"]:
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        yield token["content"], token["id"], kind


def _cutting(tokenizer: dict[str, Any]) -> str:
    """What GGUF calls the way in which text is cut before byte-level BPE; empty if it has no name for it."""
    if tokenizer["model"].get("type") != "BPE" or tokenizer["model"].get("byte_fallback"):
        return ""
    steps = _steps(tokenizer.get("pre_tokenizer"))
    kinds = [step["type"] for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return ""
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        return _PATTERNS.get(steps[0]["pattern"].get("Regex", ""), "")
    return ""


def _steps(found: dict[str, Any] | None) -> list[dict[str, Any]]:
    if found is None:
        return []
    steps: list[dict[str, Any]] = found["pretokenizers"] if found["type"] == "Sequence" else [found]
    return steps


def _begins_with_special(tokenizer: dict[str, Any]) -> bool:
    """Whether a text gets a token in front."""
    found = tokenizer.get("post_processor") or {}
    processors = found.get("processors", [found])
    return any("SpecialToken" in step for one in processors for step in one.get("single", [])[:1])


def _add_special(writer: gguf.GGUFWriter, files: Mapping[str, bytes]) -> None:
    """Merges, special tokens and chat template, as the gguf package reads them."""
    with tempfile.TemporaryDirectory() as folder:
        for name in _READ:
            if name in files:
                Path(folder, name).write_bytes(files[name])
        special = gguf.SpecialVocab(folder, load_merges=True)
    special.add_special_token.pop("bos", None)
    special.add_to_gguf(writer, quiet=True)
