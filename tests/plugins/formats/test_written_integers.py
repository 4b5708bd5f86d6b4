"""AWQ and GPTQ folders that woqfx writes: the same bytes back, every obstacle told, losses measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from folders_of_models import digests, saved, write
from foreign_folders import AWQ_CONFIG, assert_means, awq_encode, gptq_config, gptq_encode, quantized_folder
from safetensors.torch import load_file

import woqfx
from woqfx.disk import writer
from woqfx.disk.checkpoint import Checkpoint
from woqfx.errors import CheckpointError, OutputError, PlanError, UnfinishedError
from woqfx.loading import open_checkpoint
from woqfx.transcoding import convert, target_formats, transcode


def tensors(folder):
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def assert_same_tensors(one, other):
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


ROUND_TRIPS = {
    "awq": ("awq", AWQ_CONFIG, awq_encode()),
    **{
        f"gptq{bits}-{'sym' if sym else 'asym'}-{version}{'-act' if act else ''}": (
            "gptq",
            gptq_config(bits=bits, sym=sym, checkpoint_format=version, desc_act=act),
            gptq_encode(bits, symmetric=sym, minus_one=version == "gptq", act_order=act),
        )
        for bits in (2, 3, 4, 8)
        for sym, version, act in ((True, "gptq", False), (False, "gptq", True), (False, "gptq_v2", False))
    },
    **{
        f"gptq{bits}-asym-gptq-by-words": (
            "gptq",
            gptq_config(bits=bits, sym=False, meta={"quantizer": ["gptqmodel:7.7.0"]}),
            gptq_encode(bits, symmetric=False, by_words=True),
        )
        for bits in (2, 4, 8)
    },
}


@pytest.mark.parametrize("case", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_to_woqfx_and_back_gives_the_same_bytes(case, tmp_path):
    form, config, encode = case
    folder, dense = quantized_folder(tmp_path / "theirs", config, encode)
    convert(folder, tmp_path / "ours")
    assert_means(tmp_path / "ours", dense)
    done = convert(tmp_path / "ours", tmp_path / "back", to=form)
    assert (done.weights, done.losses) == (14, {})
    assert_same_tensors(folder, tmp_path / "back")
    assert_means(tmp_path / "back", dense)
    written = json.loads((tmp_path / "back" / "config.json").read_text())["quantization_config"]
    stated = ("quant_method", "bits", "group_size", "sym", "desc_act", "zero_point", "version", "checkpoint_format")
    assert {key: written[key] for key in stated if key in config} == {
        key: config[key] for key in stated if key in config
    }


def test_awq_to_gptq_directly(tmp_path):
    folder, dense = quantized_folder(tmp_path / "awq", AWQ_CONFIG, awq_encode())
    assert convert(folder, tmp_path / "gptq", to="gptq").losses == {}
    assert_means(tmp_path / "gptq", dense)
    config = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    assert (config["checkpoint_format"], config["sym"]) == ("gptq_v2", False)  # zero points of 0 are safe there
    assert json.loads((tmp_path / "gptq" / "quantize_config.json").read_text()) == config


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved("llama", tmp_path_factory.mktemp("models"), tie_word_embeddings=False)


class TestObstacles:
    def refused(self, checkpoint, form, out):
        with pytest.raises(PlanError) as told:
            convert(checkpoint, out, to=form)
        assert not out.exists()  # before any work
        return str(told.value)

    @pytest.mark.parametrize(
        ("form", "scheme", "reason"),
        [
            ("awq", {"dtype": "nf4"}, "nf4 is not a grid of integers of 4 bits; .* makes it int4_clip, groups of 32"),
            ("awq", {"dtype": "int8"}, "int8 is not a grid of integers of 4 bits"),
            ("awq", {"scale_dtype": "bf16"}, "its scales are bf16, not fp16"),
            ("awq", {"double_quant": True}, "its scales are quantized themselves"),
            ("awq", {"group_size": 40}, "inputs are no multiple of the group size 40"),
            ("gptq", {"dtype": "int5"}, "int5 is not a grid of integers of 2 or 3 or 4 or 8 bits; .* makes it int8"),
            ("gptq", {"scale_dtype": "fp32"}, "its scales are fp32, not fp16"),
        ],
    )
    def test_what_does_not_fit_is_told_with_what_would(self, form, scheme, reason, model, tmp_path):
        import re

        checkpoint = write(model, tmp_path / "out", **scheme)
        message = self.refused(checkpoint, form, tmp_path / "there")
        assert re.search(reason, message), message
        assert "model.layers.0.mlp.down_proj.weight and " in message

    def test_one_layer_among_others(self, model, tmp_path):
        checkpoint = write(model, tmp_path / "out", rules=["*.0.*down_proj=int8", "*.1.*up_proj=group_size:16"])
        message = self.refused(checkpoint, "awq", tmp_path / "there")
        assert "model.layers.0.mlp.down_proj.weight: awq cannot hold it: int8 is not" in message
        assert (
            "model.layers.1.mlp.up_proj.weight: awq cannot hold it: groups of 16, where one group size, 32," in message
        )
        # GPTQ has other widths for single layers.
        assert "down_proj" not in self.refused(checkpoint, "gptq", tmp_path / "there")

    def test_an_embedding(self, model, tmp_path):
        checkpoint = write(model, tmp_path / "out", rules=["model.embed_tokens=int4_clip"])
        message = self.refused(checkpoint, "gptq", tmp_path / "there")
        assert "model.embed_tokens.weight: gptq cannot hold it: readers of this format unpack linear layers" in message
        assert "makes it floating point" in message

    def test_a_module_that_transformers_does_not_know(self, tmp_path):
        woqfx.quantize(torch.nn.Sequential(torch.nn.Linear(64, 64)), out=tmp_path / "out")
        with pytest.raises(CheckpointError, match=r"has no config\.json, which readers of other formats need"):
            convert(tmp_path / "out", tmp_path / "there", to="gptq")
        assert not (tmp_path / "there").exists()

    def test_a_format_that_is_only_read(self, model, tmp_path):
        message = self.refused(write(model, tmp_path / "out"), "itrex", tmp_path / "there")
        assert "format itrex is only read here; written are woqfx, awq," in message


class TestRequantizing:
    def test_what_it_loses_is_measured_and_written_down(self, model, tmp_path):
        rules = ["*.0.*down_proj=int4_clip", "model.embed_tokens=int8"]
        checkpoint = write(model, tmp_path / "out", dtype="nf4", rules=rules)
        done = convert(checkpoint, tmp_path / "gptq", to="gptq", requantize=True)
        before, after = open_checkpoint(checkpoint), open_checkpoint(tmp_path / "gptq")
        assert "model.embed_tokens.weight" in after.kept
        assert done.losses.keys() == before.weights.keys() - {"model.layers.0.mlp.down_proj.weight"}
        for name, loss in done.losses.items():
            old = before.read_weight(name).dequantize().double()
            new = (after.read_weight(name).dequantize() if name in after.weights else after.read_kept(name)).double()
            assert loss == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-3, abs=1e-9)
        receipt = json.loads((tmp_path / "gptq" / "woqfx-export.json").read_text())
        assert {name: facts["error"] for name, facts in receipt["lossy"].items()} == done.losses
        assert receipt["lossy"]["model.embed_tokens.weight"]["scheme"] is None
        assert receipt["files"].keys() == {path.name for path in (tmp_path / "gptq").iterdir()} - {"woqfx-export.json"}


class TestRuns:
    def test_a_killed_conversion_goes_on(self, model, tmp_path, monkeypatch):
        checkpoint = write(model, tmp_path / "out")
        monkeypatch.setattr(writer, "_COMMIT_SECONDS", 0.0)
        steps = transcode(open_checkpoint(checkpoint), tmp_path / "stopped", "gptq")
        for _ in range(5):
            next(steps)
        steps.close()
        with pytest.raises(UnfinishedError):
            Checkpoint(tmp_path / "stopped")
        convert(checkpoint, tmp_path / "stopped", to="gptq")
        convert(checkpoint, tmp_path / "whole", to="gptq")
        assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")

    def test_an_export_is_replaced_only_on_request_and_leaves_nothing(self, model, tmp_path):
        checkpoint = write(model, tmp_path / "out")
        for _ in transcode(open_checkpoint(checkpoint), tmp_path / "there", "gptq", shard_bytes=20_000):
            pass
        with pytest.raises(OutputError, match="holds a finished checkpoint"):
            convert(checkpoint, tmp_path / "there", to="awq")
        convert(checkpoint, tmp_path / "there", to="awq", overwrite=True)
        convert(checkpoint, tmp_path / "fresh", to="awq")
        assert digests(tmp_path / "there") == digests(tmp_path / "fresh")

    def test_a_folder_of_someone_elses_is_not_touched(self, model, tmp_path):
        checkpoint = write(model, tmp_path / "out")
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "letter.txt").write_text("dear")
        with pytest.raises(OutputError, match=r"holds other files, letter\.txt"):
            convert(checkpoint, tmp_path / "there", to="gptq", overwrite=True)

    def test_several_files_with_an_index(self, model, tmp_path):
        checkpoint = write(model, tmp_path / "out")
        for _ in transcode(open_checkpoint(checkpoint), tmp_path / "there", "awq", shard_bytes=20_000):
            pass
        index = json.loads((tmp_path / "there" / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == tensors(tmp_path / "there").keys()
        assert np.unique(list(index["weight_map"].values())).size > 2
        assert woqfx.load(tmp_path / "there")

    def test_the_tokenizer_goes_along(self, model, tmp_path):
        checkpoint = write(model, tmp_path / "out")
        folder, _ = quantized_folder(tmp_path / "theirs", AWQ_CONFIG, awq_encode())
        (folder / "tokenizer.json").write_text("{}")
        (folder / "modeling_evil.py").write_text("raise SystemExit")
        convert(folder, tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "back", to="awq")
        assert (tmp_path / "back" / "tokenizer.json").read_text() == "{}"
        assert not list((tmp_path / "back").glob("*.py"))
        assert checkpoint.exists()

    def test_formats_that_are_written(self):
        assert {"woqfx", "awq", "gptq"} <= set(target_formats())
