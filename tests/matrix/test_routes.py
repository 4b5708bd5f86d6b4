"""Whatever way a model comes, and however often: the same bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from folders_of_models import contents, digests, logits, saved, write
from tiny_models import FAMILIES, tiny_model

import woqfx

TIES = [("llama", True), ("llama", False), ("gpt2", True), ("gpt2", False), ("opt", True), ("opt", False), ("t5", True)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_live_model_and_folder_give_the_same_bytes(family, dtype, models, tmp_path):
    model = tiny_model(family, dtype=dtype)
    model.save_pretrained(tmp_path / "model")
    woqfx.quantize(model, out=tmp_path / "live")
    write(tmp_path / "model", tmp_path / "folder")
    assert digests(tmp_path / "live") == digests(tmp_path / "folder")


@pytest.mark.parametrize("rules", [(), ("re:.*(embed_tokens|wte|shared)=int8",)], ids=["kept", "quantized"])
@pytest.mark.parametrize(("family", "tied"), TIES, ids=[f"{f}-{'tied' if t else 'untied'}" for f, t in TIES])
def test_routes_agree_on_ties(family, tied, rules, tmp_path):
    model = tiny_model(family, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "model")
    woqfx.quantize(model, out=tmp_path / "live", rules=rules)
    write(tmp_path / "model", tmp_path / "folder", rules=rules)
    woqfx.save(woqfx.load(tmp_path / "folder"), tmp_path / "again")
    assert digests(tmp_path / "live") == digests(tmp_path / "folder") == digests(tmp_path / "again")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_loaded_saves_as_the_same_bytes(family, models, tmp_path):
    first = write(saved(family, models), tmp_path / "first")
    woqfx.save(woqfx.load(first), tmp_path / "second")
    assert digests(first) == digests(tmp_path / "second")
    woqfx.save(woqfx.load(tmp_path / "second"), tmp_path / "third")
    assert digests(first) == digests(tmp_path / "third")


def test_a_model_quantized_in_memory_saves_as_the_bytes_of_a_checkpoint(models, tmp_path):
    source = saved("qwen2", models)
    write(source, tmp_path / "folder")
    woqfx.save(woqfx.quantize(source), tmp_path / "from a folder")
    woqfx.save(woqfx.quantize(tiny_model("qwen2")), tmp_path / "from a model")
    assert digests(tmp_path / "folder") == digests(tmp_path / "from a folder") == digests(tmp_path / "from a model")


def test_a_tokenizer_comes_along_byte_for_byte(models, tmp_path):
    source = saved("llama", models)
    (source / "tokenizer.json").write_bytes('{"version": "1.0", "é": 1}\n'.encode())
    (source / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    out = write(source, tmp_path / "out")
    woqfx.save(woqfx.load(out), tmp_path / "again")
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "again" / name).read_bytes() == (source / name).read_bytes()


def test_twenty_runs_give_the_same_bytes(models, tmp_path):
    source = saved("llama", models)
    write(source, tmp_path / "0", dtype="nf4", double_quant=True)
    expected = digests(tmp_path / "0")
    for number in range(1, 20):
        assert digests(write(source, tmp_path / str(number), dtype="nf4", double_quant=True)) == expected


def test_threads_do_not_change_the_bytes(tmp_path):
    # Large enough that torch does split the work.
    changes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 1, "vocab_size": 512}
    source = saved("llama", tmp_path, **changes)
    results = set()
    for threads in ("1", "2"):
        out = tmp_path / f"out {threads}"
        script = (
            "import sys, woqfx\n"
            "woqfx.quantize(sys.argv[1], out=sys.argv[2], dtype='nf4', double_quant=True, rules=['*v_proj=int8'])\n"
        )
        subprocess.run(
            [sys.executable, "-c", script, source, out], env={**os.environ, "OMP_NUM_THREADS": threads}, check=True
        )
        results.add(hashlib.sha256(repr(digests(out)).encode()).hexdigest())
    assert len(results) == 1


def test_shards_hold_the_tensors_of_a_single_file(models, tmp_path):
    source = saved("llama", models)
    single, sharded = write(source, tmp_path / "single"), write(source, tmp_path / "sharded", shard_bytes=20_000)
    assert len(list(sharded.glob("model-*.safetensors"))) > 3
    one, other = contents(single), contents(sharded)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(logits(woqfx.load(single)), logits(woqfx.load(sharded)))


def test_the_index_places_every_tensor_where_safetensors_finds_it(models, tmp_path):
    import json

    from safetensors import safe_open

    out = write(saved("llama", models), tmp_path / "sharded", shard_bytes=20_000)
    where = json.loads((out / "model.safetensors.index.json").read_bytes())["weight_map"]
    names = set()
    for file in {*where.values()}:
        with safe_open(out / file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                assert where[name] == file
                names.add(name)
    assert names == where.keys()
