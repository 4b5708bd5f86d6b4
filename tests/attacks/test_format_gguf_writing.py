"""What a hostile folder says of its tokenizer and its rotary embeddings, when a GGUF file is to be made of it."""

from __future__ import annotations

import json
import time
from typing import Any

import gguf
import pytest
from transformers import LlamaConfig

from woqfx.errors import CheckpointError
from woqfx_formats.gguf_decoder import Decoder
from woqfx_formats.gguf_tokenizer import describe_tokenizer

SECONDS = 5.0
SPACES = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


def tokenizer(**model: Any) -> dict[str, Any]:
    """A sentencepiece tokenizer of three pieces, with changes."""
    made = {"type": "BPE", "byte_fallback": True, "unk_token": "a", "vocab": {"a": 0, "b": 1, "ab": 2}}
    return {"model": {**made, "merges": [["a", "b"]], **model}, "added_tokens": [], "pre_tokenizer": SPACES}


def test_the_good_one_is_written():
    writer = gguf.GGUFWriter(None, "llama")
    describe_tokenizer(writer, {"tokenizer.json": json.dumps(tokenizer()).encode()}, 4, "here")
    assert writer.kv_data[0]["tokenizer.ggml.scores"].value == [-1.0, -1.0, 0.0, 0.0]


LONG = "a" * 100_000
HOSTILE: dict[str, Any] = {
    "no-json": b"{",
    "a-list": b"[]",
    "nothing-in-it": b"{}",
    "nested-without-end": b'{"a":' * 100_000,
    "no-text": b"\xff\xfe",
    "a-piece-beyond-the-embedding": tokenizer(vocab={"a": 0, "b": 1, "ab": 9}),
    "a-piece-below-zero": tokenizer(vocab={"a": 0, "b": 1, "ab": -1}),
    "a-number-that-is-none": tokenizer(vocab={"a": 0, "b": 1, "ab": "2"}),
    "numbers-of-2^70": tokenizer(vocab={"a": 2**70}),
    "merges-of-three": tokenizer(merges=[["a", "b", "c"]]),
    "merges-of-none": tokenizer(merges=[[]]),
    "merges-that-are-numbers": tokenizer(merges=[1, 2]),
    "merges-as-an-object": tokenizer(merges={"a": "b"}),
    "merges-out-of-order": tokenizer(vocab={"a": 0, "b": 1, "ab": 2}, merges=[["a", "b"], ["b", "a"], ["a", "b"]]),
    "a-merge-that-is-missing": tokenizer(merges=[]),
    "a-piece-without-end": tokenizer(vocab={LONG: 0, "b": 1}, merges=[]),
    "an-unknown-token-that-is-none": tokenizer(unk_token="nowhere"),
    "added-tokens-of-another-kind": {**tokenizer(), "added_tokens": [1]},
    "steps-of-another-kind": {**tokenizer(), "pre_tokenizer": {"type": "Sequence", "pretokenizers": 5}},
    "a-step-without-a-type": {**tokenizer(), "pre_tokenizer": {}},
    "unigram": tokenizer(type="Unigram", byte_fallback=False),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tokenizer_is_refused(name):
    data = HOSTILE[name]
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"^here: tokenizer\.json") as caught:
        describe_tokenizer(gguf.GGUFWriter(None, "llama"), {"tokenizer.json": data}, 4, "here")
    assert time.process_time() - start < SECONDS
    assert len(str(caught.value)) < 1000


ROPES: dict[str, dict[str, Any]] = {
    "no-factor": {},
    "a-factor-of-text": {"factor": "8"},
    "a-factor-of-true": {"factor": True},
    "a-list-of-factors": {"factor": [8.0]},
}


@pytest.mark.parametrize("name", ROPES)
def test_a_number_that_rotary_embeddings_lack(name):
    config = LlamaConfig(hidden_size=64, num_attention_heads=4)
    config.rope_parameters = {"rope_type": "llama3", "rope_theta": 1e4, "original_max_position_embeddings": 64} | ROPES[
        name
    ]
    with pytest.raises(CheckpointError, match=r"rope_parameters\.factor"):
        Decoder(config, "here").llama3_factors()


@pytest.mark.parametrize("factors", [None, 3, [1.0], ["a"] * 8, [1.0] * 9])
def test_factors_of_longrope_that_are_none(factors):
    config = LlamaConfig(hidden_size=64, num_attention_heads=4)
    config.rope_parameters = {"rope_type": "longrope", "rope_theta": 1e4, "long_factor": factors}
    with pytest.raises(CheckpointError, match=r"rope_parameters\.long_factor"):
        Decoder(config, "here").longrope_factors("long_factor")
