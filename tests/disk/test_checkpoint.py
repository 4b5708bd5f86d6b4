from __future__ import annotations

import json

import pytest
import torch
from folders_of_models import saved, write
from safetensors.torch import load_file
from tiny_models import tiny_model

import woqfx
from woqfx.disk.checkpoint import Checkpoint, is_checkpoint, small_files
from woqfx.disk.journal import Journal
from woqfx.disk.output import JOURNAL
from woqfx.errors import CheckpointError, UnfinishedError


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return write(saved("qwen2", folder), folder / "out", dtype="nf4", rules=["*.v_proj=int8"])


def test_the_files_are_ordinary_safetensors_of_plain_codes(out):
    tensors = load_file(out / "model.safetensors")
    q = Checkpoint(out).read_weight("model.layers.0.mlp.up_proj.weight")
    codes = tensors["model.layers.0.mlp.up_proj.weight.codes"]
    assert torch.equal(codes[:, 0] & 15, q.unpacked()[:, 0])  # the low nibble is the even code
    assert torch.equal(codes[:, 0] >> 4, q.unpacked()[:, 1])
    # No tensor of whole numbers goes by the name of a float weight.
    assert all(tensor.is_floating_point() for name, tensor in tensors.items() if name.endswith(".weight"))


def test_what_it_says_of_itself(out):
    checkpoint = Checkpoint(out)
    model = tiny_model("qwen2")
    assert len(checkpoint.weights) == 14
    assert {*checkpoint.weights, *checkpoint.kept} == {name for name, _ in model.named_parameters()}
    assert checkpoint.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert {weight.scheme.dtype for weight in checkpoint.weights.values()} == {"nf4", "int8"}
    assert checkpoint.nbytes == sum(path.stat().st_size for path in out.iterdir() if path.name != "woqfx.json")


def test_the_config_is_transformers_with_a_note_on_the_quantization(out):
    config = json.loads((out / "config.json").read_bytes())
    note = config.pop("quantization_config")
    assert "woqfx.transformers" in config.pop("transformers_weights")
    assert (note["quant_method"], note["manifest"], note["scheme"]["dtype"]) == ("woqfx", "woqfx.json", "nf4")
    assert Checkpoint(out).config == config
    assert config["model_type"] == "qwen2"


def test_verify_reads_everything(out):
    Checkpoint(out).verify()


def test_an_unfinished_folder_counts_what_is_done(tmp_path):
    with Journal.open(tmp_path / JOURNAL, {}) as journal:
        where = {"file": "model.safetensors", "bytes": 8, "sha256": "", "facts": None}
        journal.append([{"item": "a", **where}, {"item": "b", **where}, {"files": {}, "stale": []}])
    assert is_checkpoint(tmp_path)
    with pytest.raises(UnfinishedError, match=r"\(2 tensors are done\): run the same command again"):
        Checkpoint(tmp_path)


def test_a_weight_that_no_plugin_reads_names_the_weight_and_the_dtype(out, tmp_path):
    manifest = json.loads((out / "woqfx.json").read_bytes())
    manifest["schemes"][0]["dtype"] = "mine"
    for path in out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "woqfx.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"layers\.0\..*'mine'"):
        Checkpoint(tmp_path)


def test_a_model_without_config_has_small_files_without_one():
    assert small_files(None, {}, {"tokenizer.json": b"{}"}) == {"tokenizer.json": b"{}"}


def test_loading_through_the_public_door(out):
    model = woqfx.load(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight
