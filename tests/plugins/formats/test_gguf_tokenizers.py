"""sentencepiece's tokenizers in GGUF: scores that have llama.cpp cut texts as transformers does."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import gguf
import pytest
from folders_of_models import saved, write
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from woqfx.errors import CheckpointError
from woqfx.source.tokenizer import load_tokenizer
from woqfx.transcoding import convert

SPACE = "▁"
TEXTS = (
    *("The 1984 cats", "naïve café — 東京 🙂", "tab\there", "a line\n\nand another", "the the  the"),
    *(text[:300] for text in list(topics.values())[:20]),
)
PIECES = 400


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces and merges as sentencepiece's training finds them: the most frequent pair, again and again."""
    words = Counter(SPACE + word for text in list(topics.values())[:20] for word in text.split())
    cut = {word: list(word) for word in words}
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted({letter for word in words for letter in word})
    scores: dict[str, float] = {}
    while len(pieces) < PIECES:
        pairs: Counter[str] = Counter()
        for word, parts in cut.items():
            for left, right in pairwise(parts):
                pairs[left + right] += words[word]
        best = max(sorted(pairs), key=pairs.__getitem__)
        scores[best] = -float(len(scores))
        pieces.append(best)
        cut = {word: joined(parts, scores) for word, parts in cut.items()}
    numbers = {piece: number for number, piece in enumerate(pieces)}
    return numbers, generate_merges(numbers, scores)


def joined(parts: list[str], scores: dict[str, float]) -> list[str]:
    """sentencepiece's rule, written for itself: join the neighbours of the highest score, the leftmost of equals."""
    parts = list(parts)
    while True:
        able = [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not able:
            return parts
        at = -max(able)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


STYLES = {"llama-2": "llama", "mistral": "mistral", "gemma": "gemma2"}


@pytest.fixture(scope="module")
def trained() -> tuple[dict[str, int], list[tuple[str, str]]]:
    return vocabulary()


def tokenizer(style: str, numbers: dict[str, int], merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE(numbers, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    marking = normalizers.Replace(" ", SPACE)
    if style == "mistral":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif style == "gemma":
        made.normalizer = marking
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), marking])
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    return fast


def exported(folder: Path, fast: PreTrainedTokenizerFast, family: str = "llama") -> Path:
    """A GGUF file of a tiny model with this tokenizer."""
    changes = {"head_dim": 256, "query_pre_attn_scalar": 256} if family == "gemma2" else {}
    source = saved(family, folder, vocab_size=PIECES + 16, **changes)
    fast.save_pretrained(source)
    ours = write(source, folder / "ours", dtype="int8", group_size=32)
    convert(ours, folder / "theirs", to="gguf")
    return folder / "theirs" / "model.gguf"


@pytest.mark.parametrize("style", STYLES)
def test_the_file_cuts_texts_alike(tmp_path, trained, style):
    path = exported(tmp_path, tokenizer(style, *trained), STYLES[style])
    own = AutoTokenizer.from_pretrained(tmp_path / "ours")
    again = load_tokenizer(path)
    assert [again.encode(text) for text in TEXTS] == [own.encode(text) for text in TEXTS]


@pytest.mark.parametrize("style", STYLES)
def test_scores_are_those_of_sentencepiece(tmp_path, trained, style):
    """The scores in the file, by sentencepiece's own rule, cut words as the merges do."""
    path = exported(tmp_path, tokenizer(style, *trained), STYLES[style])
    fields = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"] is (style != "gemma")
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    scores = dict(zip(tokens, fields["tokenizer.ggml.scores"], strict=True))
    usable = {token: scores[token] for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.NORMAL}
    own = AutoTokenizer.from_pretrained(tmp_path / "ours")
    for word in {word for text in TEXTS[5:] for word in text.split() if word.isascii()}:
        cut = own.convert_ids_to_tokens(own.encode(f" {word}" if style == "gemma" else word, add_special_tokens=False))
        assert joined(list(SPACE + word), usable) == cut
    assert kinds[tokens.index("<unk>")] == gguf.TokenType.UNKNOWN
    assert kinds[tokens.index("<0x0A>")] == gguf.TokenType.BYTE
    assert kinds[tokens.index("<think>")] == gguf.TokenType.USER_DEFINED
    assert kinds[-1] == gguf.TokenType.UNUSED


def test_merges_that_are_not_sentencepieces_are_refused(tmp_path, trained):
    numbers, merges = trained
    ways = Counter(left + right for left, right in merges)
    missing = next(pair for pair in merges if ways[pair[0] + pair[1]] > 1)
    made = tokenizer("llama-2", numbers, [pair for pair in merges if pair != missing])
    with pytest.raises(CheckpointError, match="in a way that is not among the merges"):
        exported(tmp_path, made)
    made = tokenizer("llama-2", numbers, [*merges[40:], *merges[:40]])
    written = exported(tmp_path / "rotated", made)  # other ranks are other scores, and no fault
    assert written.is_file()


def test_other_normalizers_are_refused(tmp_path, trained):
    made = tokenizer("llama-2", *trained)
    made.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", SPACE)])
    with pytest.raises(CheckpointError, match="otherwise than sentencepiece's BPE does"):
        exported(tmp_path, made)


def test_a_folder_with_tokenizer_model_alone_is_told_what_to_do(tmp_path):
    source = saved("llama", tmp_path)
    (source / "tokenizer.model").write_bytes(b"\n\x05")
    ours = write(source, tmp_path / "ours", dtype="int8", group_size=32)
    with pytest.raises(CheckpointError, match=r"save_pretrained\(FOLDER\) writes it"):
        convert(ours, tmp_path / "theirs", to="gguf")


@pytest.mark.parametrize("name", ["llama3", "tekken", "qwen2", "gpt-4o"])
def test_cuts_of_byte_level_tokenizers_by_their_patterns(name):
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    from woqfx_formats.gguf_tokenizer import _cutting

    split = {"type": "Split", "pattern": {"Regex": GGUF_PRE_TOKENIZER_SPLITS[name]}}
    steps = {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "add_prefix_space": False}]}
    found = _cutting(json.loads(json.dumps({"model": {"type": "BPE"}, "pre_tokenizer": steps})))
    assert GGUF_PRE_TOKENIZER_SPLITS[found] == GGUF_PRE_TOKENIZER_SPLITS[name]
