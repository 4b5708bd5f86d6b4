from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from folders_of_models import saved, write
from torch import nn

import woqfx
from woqfx.disk.checkpoint import Checkpoint, is_checkpoint
from woqfx.disk.tensorfile import TensorFile
from woqfx.errors import CheckpointError, PlanError, UnfinishedError
from woqfx.loading import check_support
from woqfx.places import Places


def test_a_folder_that_is_none_is_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "absent", tmp_path / "empty", saved("llama", tmp_path)):
        assert not is_checkpoint(path)
        with pytest.raises(CheckpointError, match=path.name) as caught:
            woqfx.load(path)
        assert not isinstance(caught.value, UnfinishedError)


def test_a_module_that_transformers_does_not_know_must_be_given(tmp_path):
    woqfx.quantize(nn.Sequential(nn.Linear(8, 4)), out=tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"has no config\.json: pass the module tree"):
        woqfx.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4)), "lacks 2 tensors of Sequential, 1.weight for one"),
        (nn.Sequential(nn.Linear(8, 4, bias=False)), "the model has no '0.bias'"),
        (nn.Sequential(nn.Linear(8, 5)), r"0\.weight has shape \[4, 8\]; the model has one of shape \[5, 8\]"),
        (nn.Sequential(nn.Conv1d(8, 4, 1)), r"0\.weight has shape \[4, 8\]; the model has no such layer"),
    ],
    ids=["more", "less", "other shape", "other layer"],
)
def test_a_module_that_does_not_fit_is_refused(tmp_path, model, match):
    woqfx.quantize(nn.Sequential(nn.Linear(8, 4)), out=tmp_path / "out")
    with pytest.raises(CheckpointError, match=match):
        woqfx.load(tmp_path / "out", model=model)


def test_a_loaded_model_is_ready_to_run(tmp_path):
    model = woqfx.load(write(saved("llama", tmp_path), tmp_path / "out"))
    assert not any(module.training for module in model.modules())
    assert not [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]


def test_no_file_stays_open(tmp_path):
    import gc

    out = write(saved("llama", tmp_path), tmp_path / "out", shard_bytes=20_000)
    gc.collect()
    before = len([*Path("/proc/self/fd").iterdir()])
    model = woqfx.load(out)
    gc.collect()
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    assert model is not None
    for _ in range(3):
        (out / "model-00001-of-00004.safetensors").unlink(missing_ok=True)
        with pytest.raises(CheckpointError):
            Checkpoint(out)
    gc.collect()
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_every_weight_that_a_backend_cannot_run_is_listed(tmp_path):
    class Unable(woqfx.Backend):
        name = "unable"

        def supports(self, scheme, dtype, shape, cpu):
            return woqfx.Support(ok="up_proj" not in str(scheme), reason="it is a test", remedy="use another backend")

        def pack(self, q, float_dtype):
            raise NotImplementedError

    class Refusing(Unable):
        def supports(self, scheme, dtype, shape, cpu):
            return woqfx.Support(ok=False, reason="it is a test", remedy="use another backend")

    checkpoint = Checkpoint(write(saved("llama", tmp_path), tmp_path / "out"))
    check_support(checkpoint, Unable())
    with pytest.raises(PlanError) as caught:
        check_support(checkpoint, Refusing())
    assert len(caught.value.problems) == len(checkpoint.weights) == 14
    assert all("it is a test; use another backend" in problem for problem in caught.value.problems)


def test_a_threshold_that_the_compute_dtype_does_not_know_is_refused(tmp_path):
    out = write(saved("llama", tmp_path), tmp_path / "out", compute_dtype="int8", outlier_threshold=6.0)
    manifest = json.loads((out / "woqfx.json").read_text())
    manifest["schemes"][0]["compute_dtype"] = "fp32"
    (out / "woqfx.json").write_text(json.dumps(manifest))
    with pytest.raises(PlanError, match="fp32 keeps no outliers apart"):
        woqfx.load(out)


def test_a_tied_tensor_is_put_under_all_its_names():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    Places(model, "here").put("b.weight", torch.eye(3))
    assert model["a"].weight is model["b"].weight
    assert torch.equal(model["a"].weight, torch.eye(3))


def test_a_buffer_is_put_as_a_buffer():
    model = nn.BatchNorm1d(3)
    Places(model, "here").put("running_mean", torch.arange(3.0))
    assert torch.equal(model.running_mean, torch.arange(3.0))
    assert "running_mean" not in dict(model.named_parameters())


@pytest.mark.parametrize("name", ["nowhere.weight", "weight.deeper", "forward", "", "bias.x", "training"])
def test_a_name_that_is_no_tensor_is_refused(name):
    with pytest.raises(CheckpointError, match="here: the model has no"):
        Places(nn.Linear(2, 2), "here").put(name, torch.zeros(2))


@pytest.mark.parametrize("backend", ["torch_cpu", "llm_runtime"])
def test_weights_are_fetched_early_unless_a_pack_cache_holds_them(tmp_path, monkeypatch, backend):
    fetched = []
    monkeypatch.setattr(TensorFile, "prefetch", lambda file: fetched.append(file.path.name))
    out = write(saved("llama", tmp_path), tmp_path / "out", shard_bytes=20_000)
    woqfx.load(out, backend=backend)
    assert fetched == ["model-00001-of-00004.safetensors"]
    woqfx.load(out, backend=backend, backend_options={"pack_cache": str(tmp_path / "cache")})
    assert len(fetched) == 1
