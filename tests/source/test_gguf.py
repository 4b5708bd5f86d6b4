"""GGUF files, judged by what transformers loads from them."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
import transformers.modeling_utils
from tiny_gguf import ARCHITECTURES, write
from tiny_models import processor_seconds
from transformers import AutoModelForCausalLM

from woqfx.disk import prefetch
from woqfx.errors import SourceError
from woqfx.skeleton import build_skeleton
from woqfx.source import GGUFSource, ModuleSource, open_source
from woqfx.source.gguf_file import GGUFFile

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What transformers loads. It asks for accelerate, which it needs for several devices only."""
    monkeypatch.setattr(transformers.modeling_utils, "is_accelerate_available", lambda *_: True)

    def load(path: Path) -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
        return model

    return load


def assert_equal_sources(source: GGUFSource, live: ModuleSource) -> None:
    assert dict(source.aliases) == dict(live.aliases)
    assert list(source.tensors.items()) == list(live.tensors.items())
    for name in source.tensors:
        assert torch.equal(source.read(name), live.read(name)), name
    assert json.dumps(source.config(), sort_keys=True) == json.dumps(live.config(), sort_keys=True)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_is_the_model_that_transformers_loads(
    architecture: str, kind: str, reference: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "tiny.gguf", architecture, gguf.GGMLQuantizationType[kind])
    source = open_source(path)
    assert isinstance(source, GGUFSource)
    assert source.unexpected == ()
    assert_equal_sources(source, ModuleSource(reference(path)))


@pytest.mark.slow
@pytest.mark.real_model
def test_the_real_model_equals_what_transformers_loads(smollm2: Path, reference: Any) -> None:
    source = GGUFSource(smollm2)
    assert_equal_sources(source, ModuleSource(reference(smollm2)))
    assert source.aliases == {"lm_head.weight": "model.embed_tokens.weight"}


@pytest.mark.real_model
def test_the_real_model_opens_as_fast_as_its_tree_is_built(smollm2: Path) -> None:
    skeleton = GGUFSource(smollm2).skeleton
    tree = min(processor_seconds(lambda: build_skeleton(skeleton.config)) for _ in range(3))
    assert min(processor_seconds(lambda: GGUFSource(smollm2).fingerprint()) for _ in range(3)) < 20 * tree


@pytest.mark.slow
@pytest.mark.real_model
def test_the_real_tokenizer_is_carried_over(smollm2: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    files = GGUFSource(smollm2).sidecars()
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= set(files)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    rebuilt = AutoTokenizer.from_pretrained(tmp_path)
    original = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    text = "The capital of France is <|im_start|> naïve 12345\n\t日本"
    assert rebuilt(text)["input_ids"] == original(text)["input_ids"]
    assert rebuilt.decode(rebuilt(text)["input_ids"]) == text
    assert rebuilt.chat_template == original.chat_template


def test_a_file_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    source = GGUFSource(write(tmp_path / "tiny.gguf", "llama"))
    assert set(source.sidecars()) == {"generation_config.json"}


def test_the_fingerprint_follows_the_header_and_the_time(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", "llama")
    before = GGUFSource(path).fingerprint()
    assert GGUFSource(path).fingerprint() == before
    write(path, "llama", gguf.GGMLQuantizationType.Q8_0)
    assert GGUFSource(path).fingerprint() != before


def test_a_file_that_shrinks_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", "llama")
    source = GGUFSource(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(SourceError, match=r"tiny\.gguf ended within"):
        for name in source.tensors:
            source.read(name)


def test_a_lacking_tensor_names_the_architecture(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", "llama")
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(SourceError, match=r"'llama'.*lacks 1 .*layers\.1\.mlp\.up_proj\.weight"):
        GGUFSource(path)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", "llama")
    path.write_bytes(path.read_bytes().replace(b"llama", b"abcde"))
    with pytest.raises(SourceError, match="'abcde'"):
        GGUFSource(path)


def test_tensors_without_a_place_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", "llama", extra={"rope_freqs.weight": np.ones(8, np.float32)})
    source = GGUFSource(path)
    assert source.unexpected == ("rope_freqs.weight",)
    assert not any("rope" in name for name in source.tensors)


class TestDamage:
    """A damaged or hostile file is an error that names it, at once and without much memory."""

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.02, 0.5, 0.999])
    def test_truncated(self, share: float, tmp_path: Path) -> None:
        path = write(tmp_path / "tiny.gguf", "llama")
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(SourceError, match=r"tiny\.gguf"):
            GGUFSource(path)

    @pytest.mark.parametrize(
        "header",
        [
            pytest.param(b"GGML" + struct.pack("<IQQ", 3, 0, 0), id="magic"),
            pytest.param(b"GGUF" + struct.pack("<IQQ", 1, 0, 0), id="version"),
            pytest.param(b"GGUF" + struct.pack(">IQQ", 3, 0, 0), id="big-endian"),
            pytest.param(b"GGUF" + struct.pack("<IQQ", 3, 0, 0), id="no-architecture"),
            pytest.param(b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), id="tensor-count"),
            pytest.param(b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), id="entry-count"),
            pytest.param(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), id="key-length"),
            pytest.param(b"GGUF" + struct.pack("<IQQQcI", 3, 0, 1, 1, b"a", 99), id="value-type"),
            pytest.param(b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"a", 9, 0, 2**62), id="array-length"),
            pytest.param(b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"a", 9, 8, 2**62), id="text-array-length"),
            pytest.param(
                b"GGUF" + struct.pack("<IQQQcI", 3, 0, 1, 1, b"a", 9) + struct.pack("<IQ", 9, 1) * 100_000, id="nesting"
            ),
            pytest.param(
                b"GGUF" + struct.pack("<IQQQcI", 3, 1, 0, 1, b"t", 4) + struct.pack("<4QIQ", *[2**40] * 4, 0, 0),
                id="huge-tensor",
            ),
            pytest.param(b"GGUF" + struct.pack("<IQQQcI", 3, 1, 0, 1, b"t", 10**9), id="rank"),
        ],
    )
    def test_hostile_headers(self, header: bytes, tmp_path: Path) -> None:
        path = tmp_path / "bad.gguf"
        path.write_bytes(header)
        start = time.process_time()
        with pytest.raises(SourceError, match=r"bad\.gguf"):
            GGUFFile(path)
        assert time.process_time() - start < 2

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="is not a file"):
            GGUFSource(tmp_path / "none.gguf")


@pytest.mark.slow
@pytest.mark.real_model
def test_the_header_agrees_with_the_gguf_package(smollm2: Path) -> None:
    file = GGUFFile(smollm2)
    reader = gguf.GGUFReader(smollm2)
    assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors[::40]:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        assert np.array_equal(file.read(tensor.name).numpy(), expected)
    file.close()


def test_what_lies_behind_the_tensors_that_were_read_is_fetched_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fetched = write(tmp_path / "tiny.gguf", "llama"), list[int]()
    monkeypatch.setattr(prefetch, "PIECE", 4096)
    monkeypatch.setattr(prefetch, "_NOWAIT", None)  # whatever the page cache has
    monkeypatch.setattr(os, "sendfile", lambda _, __, start, ___: fetched.append(start))
    with closing(GGUFFile(path)) as file:
        first, second, *_ = file.tensors
        file.read(first)
        assert fetched == []
        file.read(second)
        for thread in threading.enumerate():
            if thread.name == "woqfx-prefetch":
                thread.join()
    assert fetched == list(range(fetched[0], path.stat().st_size, 4096))
