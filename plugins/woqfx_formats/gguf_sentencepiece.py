"""sentencepiece's tokenizers for llama.cpp: from the merges of a `tokenizer.json` back to the scores of pieces.

sentencepiece joins, of all neighbours that make up a piece, those of the highest score (Sennrich et al.,
arXiv:1508.07909; Kudo and Richardson, arXiv:1808.06226). transformers lists the same as merges: every way to put a
piece together, by falling scores. So a piece's score is the rank of its merges, negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import gguf

SPACE = "▁"
_LONGEST = 512  # letters of a piece; those in use have a few dozen


class OddMergesError(ValueError):
    """Merges that no scores of pieces give."""


def is_sentencepiece(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a `tokenizer.json` is BPE as sentencepiece has it: letters, and bytes where a letter is unknown."""
    return tokenizer["model"].get("type") == "BPE" and bool(tokenizer["model"].get("byte_fallback"))


def prefixes_space(steps: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether texts get a space in front; None if `steps` do anything but that and the marking of spaces.

    `steps` are those of the normalizer and the pre-tokenizer.
    """
    prefix, marks = False, False
    for step in steps:
        kind = step["type"]
        if kind == "Prepend" and step["prepend"] == SPACE:
            prefix = True
        elif kind == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE:
            marks = True
        elif kind == "Metaspace" and step["replacement"] == SPACE and not step.get("split", True):
            prefix, marks = prefix or step["prepend_scheme"] != "never", True
        elif not (kind == "Split" and marks and step["pattern"] == {"String": " "}):  # of which none are left
            return None
    return prefix if marks else None


def scores(tokenizer: Mapping[str, Any]) -> dict[str, float]:
    """The score of each piece of the vocabulary. Raises `OddMergesError` if merges are not sentencepiece's.

    Pieces that are no merge's come last; their scores are never compared.
    """
    vocabulary: Mapping[str, int] = tokenizer["model"]["vocab"]
    whole = {token["content"] for token in tokenizer["added_tokens"]} | {tokenizer["model"].get("unk_token")}
    pairs = [_pair(merge) for merge in tokenizer["model"]["merges"]]
    made = [left + right for left, right in pairs]
    ranks: dict[str, int] = {}
    for piece in made:
        ranks.setdefault(piece, len(ranks))
    if sum(a != b for a, b in pairwise(made)) + bool(made) != len(ranks):
        raise OddMergesError("the merges that make up one piece do not follow each other")
    listed = set(pairs)
    for piece in vocabulary:
        if len(piece) > _LONGEST:
            raise OddMergesError(f"{piece[:80]!r}... has {len(piece)} letters")
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        ways = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
        if piece not in whole and not _is_byte(piece) and not listed.issuperset(ways):
            raise OddMergesError(f"{piece!r:.80} can be put together in a way that is not among the merges")
    last = len(ranks)
    return {piece: -float(ranks.get(piece, last)) for piece in vocabulary}


def kinds(tokenizer: Mapping[str, Any]) -> dict[str, gguf.TokenType]:
    """The kinds of the pieces that are not ordinary: bytes, and what stands for the unknown."""
    found = {piece: gguf.TokenType.BYTE for piece in tokenizer["model"]["vocab"] if _is_byte(piece)}
    unknown = tokenizer["model"].get("unk_token")
    return found if unknown is None else {**found, unknown: gguf.TokenType.UNKNOWN}


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
