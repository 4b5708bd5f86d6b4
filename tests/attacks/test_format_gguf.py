"""GGUF files with one lie each: refused with a message that names the file, in bounded time and memory."""

from __future__ import annotations

import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from foreign import read_all
from tiny_gguf import write

from woqfx.errors import WoqfxError

SECONDS = 5.0
BYTES = 256 << 20


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    path = write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", "llama", gguf.GGMLQuantizationType.Q4_0)
    read_all(path)
    return path.read_bytes()


def refused(path: Path, match: str) -> None:
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WoqfxError, match=match) as caught:
        read_all(path)
    assert time.process_time() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 4000


def _entry(data: bytes, key: str) -> int:
    """Where the value of a metadata entry begins, after its type."""
    text = key.encode()
    return data.index(struct.pack("<Q", len(text)) + text) + 8 + len(text) + 4


def _info(data: bytes, name: str) -> int:
    """Where the description of a tensor begins, after its name: rank, dimensions, type, offset."""
    text = name.encode()
    return data.index(struct.pack("<Q", len(text)) + text) + 8 + len(text)


def put(at: Callable[[bytes], int], layout: str, *values: int) -> Callable[[bytes], bytes]:
    """Numbers in the place of others."""

    def change(data: bytes) -> bytes:
        start = at(data)
        return data[:start] + struct.pack(layout, *values) + data[start + struct.calcsize(layout) :]

    return change


def setting(key: str, value: int, layout: str = "<I") -> Callable[[bytes], bytes]:
    return put(lambda data: _entry(data, key), layout, value)


def dimension(number: int, value: int, name: str = "blk.0.attn_q.weight") -> Callable[[bytes], bytes]:
    return put(lambda data: _info(data, name) + 4 + 8 * number, "<Q", value)


def tensor(shift: int, layout: str, value: int, name: str = "blk.0.attn_q.weight") -> Callable[[bytes], bytes]:
    return put(lambda data: _info(data, name) + shift, layout, value)


def twice(key: str, other: str) -> Callable[[bytes], bytes]:
    """One name of the header for another of the same length."""
    assert len(key) == len(other)
    return lambda data: data.replace(other.encode(), key.encode(), 1)


def aligned(value: int) -> Callable[[bytes], bytes]:
    """An alignment of its own, in the place of the name."""

    def change(data: bytes) -> bytes:
        begin = _entry(data, "general.name") - 4 - len("general.name") - 8
        end = begin + 8 + len("general.name") + 4 + 8 + len("tiny")
        key = b"general.alignment"
        entry = struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, value)
        return data[:begin] + entry + data[end:]

    return change


LIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no-magic": (lambda data: b"GGML" + data[4:], "no woqfx|not a|is not"),
    "version-1": (put(lambda _: 4, "<I", 1), "version 1"),
    "big-endian": (put(lambda _: 4, ">I", 3), "version 50331648"),
    "tensors-2^63": (put(lambda _: 8, "<Q", 2**63), "truncated or damaged"),
    "tensors-one-more": (put(lambda _: 8, "<Q", 24), "cannot be used"),
    "entries-2^64": (put(lambda _: 16, "<Q", 2**64 - 1), "truncated or damaged|cannot be used"),
    "entries-none": (put(lambda _: 16, "<Q", 0), "cannot be used|without"),
    "key-of-2^63-letters": (put(lambda _: 24, "<Q", 2**63), "truncated or damaged"),
    "key-of-the-whole-file": (put(lambda _: 24, "<Q", 10**5), "truncated or damaged|cannot be used"),
    "text-of-2^40-letters": (setting("general.architecture", 2**40, "<Q"), "truncated or damaged"),
    "a-type-that-is-none": (put(lambda data: _entry(data, "general.name") - 4, "<I", 99), "unknown type 99"),
    "a-type-of-8-bytes": (
        put(lambda data: _entry(data, "llama.block_count") - 4, "<I", 10),
        "cannot be used|no config",
    ),
    "blocks-2^31": (setting("llama.block_count", 2**31), "block_count"),
    "blocks-1000": (setting("llama.block_count", 1000), "more than 10210 modules"),
    "blocks-0": (setting("llama.block_count", 0), "num_hidden_layers 0, which is no model"),
    "vocabulary-0": (setting("llama.vocab_size", 0), "vocab_size 0, which is no model"),
    "embedding-2^32-1": (setting("llama.embedding_length", 2**32 - 1), "shape|cannot|config"),
    "embedding-0": (setting("llama.embedding_length", 0), "hidden_size 0, which is no model"),
    "heads-0": (setting("llama.attention.head_count", 0), "num_attention_heads 0, which is no model|no config"),
    "heads-2^31": (setting("llama.attention.head_count", 2**31), "head_count"),
    "heads-3": (setting("llama.attention.head_count", 3), "shape|cannot|config"),
    "key-heads-0": (setting("llama.attention.head_count_kv", 0), "config|cannot|shape"),
    "vocabulary-2^32-1": (setting("llama.vocab_size", 2**32 - 1), "shape|config"),
    "another-architecture": (twice("zlama", "llama"), "architecture"),
    "alignment-0": (aligned(0), "alignment is 0"),
    "alignment-3": (aligned(3), "alignment is 3"),
    "alignment-2^31": (aligned(2**31), "truncated"),
    "rank-0": (tensor(0, "<I", 0), "shape|cannot be used"),
    "rank-5": (tensor(0, "<I", 5), "5 dimensions"),
    "rank-2^32-1": (tensor(0, "<I", 2**32 - 1), "dimensions"),
    "width-2^63": (dimension(0, 2**63), "truncated|ends at byte"),
    "width-0": (dimension(0, 0), "shape|overlap|cannot"),
    "width-33": (dimension(0, 33), "no whole number of Q4_0 blocks"),
    "height-2^64-1": (dimension(1, 2**64 - 1), "ends at byte"),
    "height-half": (dimension(1, 32), "shape"),
    "size-that-wraps-around": (dimension(1, 2**61), "ends at byte"),
    "type-99": (tensor(4 + 16, "<I", 99), "99"),
    "type-Q8_0": (tensor(4 + 16, "<I", 8), "overlap"),
    "type-F16": (tensor(4 + 16, "<I", 1), "overlap"),
    "offset-of-another": (tensor(4 + 16 + 4, "<Q", 0), "overlap"),
    "offset-odd": (tensor(4 + 16 + 4, "<Q", 33), "no multiple of 32"),
    "offset-2^63": (tensor(4 + 16 + 4, "<Q", 2**63), "ends at byte"),
    "offset-beyond": (tensor(4 + 16 + 4, "<Q", 2**20), "ends at byte"),
    "a-tensor-twice": (twice("blk.0.attn_k.weight", "blk.0.attn_v.weight"), "twice"),
    "a-tensor-of-no-model": (twice("blk.0.attn_X.weight", "blk.0.attn_v.weight"), "lacks"),
    "names-that-are-no-text": (lambda data: data.replace(b"blk.0.attn_q", b"blk.0.attn\xff\xff"), "cannot be used"),
    "cut-by-one-byte": (lambda data: data[:-1], "truncated"),
    "cut-in-half": (lambda data: data[: len(data) // 2], "truncated"),
    "cut-in-the-header": (lambda data: data[:100], "truncated or damaged"),
    "eight-bytes": (lambda data: data[:8], "truncated or damaged"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused(good, tmp_path, name):
    change, match = LIES[name]
    path = tmp_path / "lie.gguf"
    path.write_bytes(change(good))
    refused(path, match)


def test_a_scale_that_is_no_number(good, tmp_path):
    infinite = struct.pack("<e", float("inf"))
    path = tmp_path / "lie.gguf"
    path.write_bytes(good)
    with path.open("rb") as file:
        reader = gguf.GGUFReader(file.name)
    start = next(one.data_offset for one in reader.tensors if one.name == "blk.1.ffn_down.weight")
    path.write_bytes(good[:start] + infinite + good[start + 2 :])
    refused(path, r"blk\.1\.ffn_down\.weight: a scale is not finite")


def test_a_file_that_shrinks_while_it_is_open(good, tmp_path):
    from woqfx.loading import open_checkpoint

    path = tmp_path / "shrinking.gguf"
    path.write_bytes(good)
    stored = open_checkpoint(path)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(WoqfxError, match="ended within"):
        for name in stored.weights:
            stored.read_weight(name)
