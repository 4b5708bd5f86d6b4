from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from woqfx.generating.detokenizing import Detokenizer


def pieces(tokenizer: Any, tokens: list[int], context: tuple[int, ...] = (), **options: Any) -> list[str]:
    detokenizer = Detokenizer(tokenizer, context, **options)
    return [*map(detokenizer.feed, tokens), detokenizer.finish()]


@pytest.fixture(scope="module")
def sentence_pieces() -> Any:
    """Words with a mark for the space before them, which is dropped at the beginning: SentencePiece's way."""
    words = ["<unk>", "</s>", "▁Paris", "▁is", "▁the", "▁capital", "!"]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_of_one_character_come_together(tokenizer: Any, text: str):
    came = pieces(tokenizer, tokenizer(text)["input_ids"])
    assert "".join(came) == text
    assert "\N{REPLACEMENT CHARACTER}" in text or not any("\N{REPLACEMENT CHARACTER}" in piece for piece in came)


@given(tokens=st.lists(st.integers(3, 258), max_size=40))
def test_the_pieces_are_the_whole_even_of_bytes_that_are_no_text(tokenizer: Any, tokens: list[int]):
    whole = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(pieces(tokenizer, tokens)) == whole


def test_a_text_that_is_gone_on_with_keeps_the_space_between(sentence_pieces: Any):
    paris, the = (sentence_pieces.convert_tokens_to_ids(word) for word in ("▁Paris", "▁the"))
    assert "".join(pieces(sentence_pieces, [paris, the])) == "Paris the"  # an answer of its own
    assert "".join(pieces(sentence_pieces, [the], (paris,))) == " the"


def test_special_tokens_are_text_when_asked_for(tokenizer: Any):
    tokens = [*tokenizer("a")["input_ids"], 1, *tokenizer("b")["input_ids"]]
    assert "".join(pieces(tokenizer, tokens)) == "ab"
    assert "".join(pieces(tokenizer, tokens, special=True)) == "a<s>b"
