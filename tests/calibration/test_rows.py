"""From texts to rows of tokens, with a tokenizer to which a character is a token."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model

from woqfx import CalibrationError, CalibrationRequest, Subject
from woqfx.calibration import prepare_calibration
from woqfx.calibration.rows import passages
from woqfx.source import open_source

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


def rows(source, **request):
    found = prepare_calibration(CalibrationRequest(**request), source)
    return [row for batch in found.batches for row in batch]


def texts(source, **request):
    return [Subject(source).tokenizer.decode(row) for row in rows(source, **request)]


class TestPassages:
    @given(st.text(alphabet=" \nab", max_size=200), st.integers(1, 20))
    def test_they_are_the_text_in_parts_of_a_size(self, text, size):
        parts = list(passages(text, size))
        assert text.startswith("".join(parts)) and not text[len("".join(parts)) :].strip()
        assert all(len(part) <= 2 * size for part in parts)
        assert all(len(part) >= size for part in parts[:-1])

    @pytest.mark.parametrize(
        ("text", "first"),
        [
            ("aaaaa\n\nbbbbb\nccc ddd", "aaaaa\n\n"),
            ("aaaaabb\nccc ddd eee", "aaaaabb\n"),
            ("aaaaabb ccc ddd eee", "aaaaabb "),
            ("aaaaabbcccdddeeefff", "aaaaa"),
        ],
        ids=["paragraph", "line", "word", "anywhere"],
    )
    def test_they_end_where_something_ends(self, text, first):
        assert next(passages(text, 5)) == first


class TestTexts:
    def test_they_are_joined_by_empty_lines_and_cut(self, source):
        assert texts(source, data=["abcdef"] * 4, samples=3, seq_len=10) == [
            "abcdef\n\nab",
            "cdef\n\nabcd",
            "ef\n\nabcdef",
        ]

    def test_the_seed_decides_their_order(self, source):
        words = [chr(ord("a") + number) * 6 for number in range(20)]
        orders = {tuple(texts(source, data=words, samples=20, seq_len=8, seed=seed)) for seed in (0, 1, 1, 2)}
        assert len(orders) == 3
        assert {tuple(sorted(order)) for order in orders} == {tuple(f"{word}\n\n" for word in words)}

    def test_no_generator_but_its_own_is_touched(self, source):
        torch.manual_seed(3)
        before = torch.random.get_rng_state()
        rows(source, data=["some text"] * 9, samples=2, seq_len=8)
        assert torch.equal(before, torch.random.get_rng_state())

    def test_each_row_begins_as_the_tokenizer_begins_a_text(self, source):
        tokenizer = Subject(source).tokenizer
        from tokenizers.processors import TemplateProcessing

        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        found = rows(source, data=["abcdef"] * 4, samples=2, seq_len=6, tokenizer=tokenizer)
        assert [row[0] for row in found] == [1, 1] and not any((row[1:] < 3).any() for row in found)
        assert [tokenizer.decode(row[1:]) for row in found] == ["abcde", "f\n\nab"]

    def test_no_more_of_an_endless_set_is_read_than_is_looked_at(self, source, monkeypatch):
        monkeypatch.setattr("woqfx.calibration.rows.MAX_CHARACTERS", 1000)
        taken = 0

        def endless():
            nonlocal taken
            while True:
                taken += 1
                yield "ten chars!"

        assert len(rows(source, data=endless(), samples=8, seq_len=16)) == 8
        assert taken == 100

    def test_a_tokenizer_that_warns_of_long_texts_is_not_heard(self, source):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rows(source, data=["a long text " * 1000], samples=8, seq_len=16)


class TestChats:
    def test_they_go_through_the_template(self, source):
        (text,) = texts(source, data=[CHAT] * 2, samples=1, seq_len=32)
        assert text == "[user] hello\n[assistant] hi\n[ass"

    def test_a_list_of_messages_is_one_chat(self, source):
        (text,) = texts(source, data=CHAT, samples=1, seq_len=20)
        assert text == "[user] hello\n[assist"

    def test_without_a_template(self, source):
        tokenizer = Subject(source).tokenizer
        tokenizer.chat_template = None
        with pytest.raises(CalibrationError, match="has no chat template to write conversations with: give texts"):
            rows(source, data=[CHAT], tokenizer=tokenizer, seq_len=8)

    def test_a_template_that_refuses(self, source):
        tokenizer = Subject(source).tokenizer
        tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
        with pytest.raises(CalibrationError, match="refuses a conversation of the data: roles must alternate"):
            rows(source, data=[CHAT], tokenizer=tokenizer, seq_len=8)


class TestTokens:
    def test_they_stay_as_they_are_and_in_order(self, source):
        found = rows(source, data=torch.arange(32).view(4, 8), samples=3, seq_len=8)
        assert torch.equal(torch.stack(found), torch.arange(24).view(3, 8))

    def test_longer_ones_are_cut(self, source):
        found = rows(source, data=[list(range(10))], samples=3, seq_len=4)
        assert sorted(row.tolist() for row in found) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    def test_padding_is_gone(self, source):
        batch = {"input_ids": [[0, 5, 6], [7, 8, 9]], "attention_mask": [[0, 1, 1], [1, 1, 1]]}
        assert sorted(row.tolist() for row in rows(source, data=batch, samples=2, seq_len=8)) == [[5, 6], [7, 8, 9]]

    def test_they_need_no_tokenizer(self):
        live = open_source(tiny_model("llama"))
        assert len(rows(live, data=[[5, 6, 7]], samples=1, seq_len=8)) == 1


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"data": []}, "there is no text in it, or all its texts are empty"),
        ({"data": ["", "\n \t"]}, "all its texts are empty"),
        ({"data": ["four"], "seq_len": 7}, "make 0 rows of 7 tokens, .* ask for a smaller seq_len"),
        ({"data": ["four"] * 5, "seq_len": 8}, r"make 3 rows of 8 tokens, where 128 samples .* ask for samples=3 "),
        ({"data": [[5, 6]], "samples": 2}, "make 1 sequences, where 2 samples"),
        ({"data": ["text", [5, 6]], "seq_len": 2}, "it mixes texts and tokens"),
        ({"data": [[5, 6], "text"], "seq_len": 2}, "it mixes texts and tokens"),
        ({"data": [[5, 259]], "samples": 1}, "token id 259 is not among the 259 that .* knows"),
        ({"data": [[5, -1]], "samples": 1}, "token id -1 is not among"),
        ({"data": ["text"], "seq_len": 65}, "seq_len 65 is beyond the 64 positions .* ask for seq_len=64"),
        ({"data": 5}, "calibration data are int, where a name"),
        ({"data": {"train": ["a"], "test": []}}, "it has the splits train, test; name one"),
        ({"data": {"train": ["a"]}, "split": "dev"}, "it has the splits train; 'dev' is not one of them"),
        ({"samples": 0}, "samples must be a whole number from 1, not 0"),
        ({"samples": True}, "samples must be a whole number from 1, not True"),
        ({"seq_len": 1}, "seq_len must be a whole number from 2, not 1"),
        ({"seed": -1}, "seed must be a whole number from 0, not -1"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"data": ["text"], "tokenizer": 5}, "tokenizer is 5, not a tokenizer"),
        (
            {"data": ["text"], "tokenizer": "/nowhere/at/all"},
            "/nowhere/at/all has no tokenizer that transformers can read",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_had(source, request_, says):
    with pytest.raises(CalibrationError, match=says):
        rows(source, **{"seq_len": 16, **request_})


def test_a_model_without_a_tokenizer():
    with pytest.raises(
        CalibrationError, match="LlamaForCausalLM has no tokenizer to read the calibration texts with: pass"
    ):
        rows(open_source(tiny_model("llama")), data=["text"], seq_len=8)


def test_ids_beyond_the_vocabulary_of_another_model(source):
    small = open_source(tiny_model("llama", vocab_size=64))
    with pytest.raises(
        CalibrationError, match="is not among the 64 that LlamaForCausalLM knows; the tokens are another"
    ):
        rows(small, data=["text"] * 9, samples=1, seq_len=8, tokenizer=Subject(source).tokenizer)
