"""From a `tokenizer.json` to the metadata that llama.cpp reads: byte-level BPE, and sentencepiece's."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf

from woqfx.errors import CheckpointError
from woqfx_formats import gguf_sentencepiece as sentencepiece

TOKENIZER = "tokenizer.json"
#: What of a model's files the gguf package takes special tokens and the chat template from.
_READ = (TOKENIZER, "tokenizer_config.json", "chat_template.jinja", "chat_template.json", "config.json")
_SLOW = ("tokenizer.model", "vocab.json", "tekken.json")


def describe_tokenizer(writer: gguf.GGUFWriter, files: Mapping[str, bytes], vocabulary: int, label: str) -> None:
    """Add a model's tokenizer, from its `files`, to the metadata; a model without one gets none.

    `vocabulary` is the number of rows of the embedding. Raises `CheckpointError` for kinds of tokenizers that are not
    written.
    """
    if TOKENIZER not in files:
        if others := [name for name in _SLOW if name in files]:
            raise CheckpointError(
                f"{label} has {others[0]} and no {TOKENIZER}, which GGUF's tokenizer is made from; "
                "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"
            )
        writer.add_tokenizer_model("no_vocab")
        return
    try:
        tokenizer = json.loads(files[TOKENIZER])
        if sentencepiece.is_sentencepiece(tokenizer):
            _describe_sentencepiece(writer, tokenizer, vocabulary)
        else:
            _describe_byte_level(writer, tokenizer, vocabulary)
        writer.add_add_bos_token(_begins_with_special(tokenizer))
        _add_special(writer, files, merges=not sentencepiece.is_sentencepiece(tokenizer))
    except _UnnamedError as error:
        raise CheckpointError(f"{label}: {TOKENIZER} {error}; {_REMEDY}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{label}: {TOKENIZER} cannot be understood: {str(error)[:500]}") from error


_REMEDY = (
    "GGUF has names for byte-level BPE as in GPT-2, SmolLM, Llama 3, Qwen and Tekken, and for sentencepiece's BPE: "
    f"take {TOKENIZER} out of the folder to write a file without a tokenizer"
)


class _UnnamedError(Exception):
    """A way to cut text that GGUF has no name for."""


def _describe_byte_level(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], vocabulary: int) -> None:
    cut = _cutting(tokenizer)
    if not cut:
        raise _UnnamedError("cuts text in a way that has no name in GGUF")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    tokens, kinds = _tokens(tokenizer, vocabulary)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)


def _describe_sentencepiece(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], vocabulary: int) -> None:
    steps = _steps(tokenizer.get("normalizer"), "normalizers") + _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    prefix = sentencepiece.prefixes_space(steps)
    if prefix is None:
        raise _UnnamedError("changes or cuts text otherwise than sentencepiece's BPE does in GGUF")
    try:
        scores = sentencepiece.scores(tokenizer)
    except sentencepiece.OddMergesError as error:
        raise _UnnamedError(f"is no vocabulary of sentencepiece: {error}") from error
    tokens, kinds = _tokens(tokenizer, vocabulary)
    numbers = {token: number for number, token in enumerate(tokens)}
    for token, kind in sentencepiece.kinds(tokenizer).items():
        kinds[numbers[token]] = int(kind)
    # llama.cpp looks for these in texts whose spaces are not marked yet.
    spelled = [
        token.replace(sentencepiece.SPACE, " ") if kind == gguf.TokenType.USER_DEFINED else token
        for token, kind in zip(tokens, kinds, strict=True)
    ]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(spelled)
    writer.add_token_scores([scores.get(token, 0.0) for token in tokens])
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(prefix)


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
    if tokenizer["model"].get("type") != "BPE":
        return ""
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return ""
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        return _named(steps[0]["pattern"].get("Regex", ""))
    return ""


def _named(pattern: str) -> str:
    """llama.cpp's name for cutting text by a regular expression: it knows those of some families."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    return next((name for name, known in GGUF_PRE_TOKENIZER_SPLITS.items() if known == pattern), "")


def _steps(found: dict[str, Any] | None, parts: str) -> list[dict[str, Any]]:
    if found is None:
        return []
    steps: list[dict[str, Any]] = found[parts] if found["type"] == "Sequence" else [found]
    return steps


def _begins_with_special(tokenizer: dict[str, Any]) -> bool:
    """Whether a text gets a token in front."""
    found = tokenizer.get("post_processor") or {}
    processors = found.get("processors", [found])
    return any("SpecialToken" in step for one in processors for step in one.get("single", [])[:1])


def _add_special(writer: gguf.GGUFWriter, files: Mapping[str, bytes], *, merges: bool) -> None:
    """Merges, special tokens and chat template, as the gguf package reads them."""
    with tempfile.TemporaryDirectory() as folder:
        for name in _READ:
            if name in files:
                Path(folder, name).write_bytes(files[name])
        special = gguf.SpecialVocab(folder, load_merges=merges)
    special.add_special_token.pop("bos", None)
    special.add_to_gguf(writer, quiet=True)
