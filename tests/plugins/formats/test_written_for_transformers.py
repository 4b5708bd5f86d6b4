"""Folders written for bitsandbytes and compressed-tensors, loaded by transformers with the real libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import NVFP4_CONFIG, nvfp4_encode
from folders_of_models import saved, write
from foreign_folders import quantized_folder
from safetensors.torch import load_file
from tiny_models import tiny_inputs

import woqfx
from woqfx.disk.checkpoint import Checkpoint
from woqfx.disk.tensorfile import TensorFile
from woqfx.errors import PlanError
from woqfx.transcoding import convert

pytest.importorskip("bitsandbytes")
pytest.importorskip("compressed_tensors")

KEEP_EMBEDDING = ["model.embed_tokens=keep"]
#: Tiny rows are 64 and 96 long.
COMPRESSED = {
    "int4-groups": {"dtype": "int4_clip"},
    "int4-rows": {"dtype": "int4_clip", "group_size": -1},
    "int4-zero-points": {"dtype": "int4_clip", "symmetric": False},
    "int8-rows": {"dtype": "int8", "group_size": -1},
    "int3-groups": {"dtype": "int3"},
    "int4-double-quantized": {"dtype": "int4_fullrange", "double_quant": True},
    "mixed": {"dtype": "int4_clip", "rules": [*KEEP_EMBEDDING, "*.down_proj=int8", "*.o_proj=keep"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return saved("llama", tmp_path_factory.mktemp("model"))


def quantized(folder: Path, out: Path, **how: Any) -> Path:
    return write(folder, out, **{"rules": KEEP_EMBEDDING, "group_size": 32, "scale_dtype": "fp32", **how})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**tiny_inputs(model)).logits
    return found


def assert_same_weights(one: Path, other: Path) -> None:
    """Both hold the same weights, bit for bit."""
    first, second = woqfx.load(one), woqfx.load(other)
    packed = {name: module for name, module in first.named_modules() if isinstance(module, woqfx.PackedWeight)}
    assert packed
    for name, module in packed.items():
        assert torch.equal(module.dequantize(), second.get_submodule(name).dequantize()), name


@pytest.mark.parametrize("how", COMPRESSED.values(), ids=COMPRESSED)
def test_compressed_tensors(tmp_path, folder, how):
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    ours = quantized(folder, tmp_path / "ours", **how)
    convert(ours, tmp_path / "theirs", to="compressed-tensors")
    assert_same_weights(ours, tmp_path / "theirs")
    # Loaded packed, transformers 5.23 cannot place packed zero points.
    loading = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", **({} if how.get("symmetric", True) else loading)
    )
    assert torch.allclose(logits(theirs), logits(woqfx.load(ours)), atol=2e-5)


BLOCKS = {
    "nf4": {"dtype": "nf4"},
    "nf4-double-quantized": {"dtype": "nf4", "double_quant": True},
    "fp4": {"dtype": "fp4_bnb"},
    "nf4-fp16-scales": {"dtype": "nf4", "scale_dtype": "fp16"},
}


@pytest.mark.parametrize("how", BLOCKS.values(), ids=BLOCKS)
def test_bitsandbytes(tmp_path, folder, how):
    from transformers import AutoModelForCausalLM

    ours = quantized(folder, tmp_path / "ours", **how)
    convert(ours, tmp_path / "theirs", to="bitsandbytes")
    assert_same_weights(ours, tmp_path / "theirs")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    kinds = {type(module).__name__ for name, module in theirs.named_modules() if name.endswith("_proj")}
    assert kinds == {"Linear4bit"}
    expected = logits(woqfx.load(ours))
    assert torch.allclose(logits(theirs), expected, atol=0.05)  # its products round to bfloat16 where the CPU can
    # The run has put its weights in another order, so that they are loaded again.
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").dequantize()
    assert torch.allclose(logits(dense), expected, atol=2e-5)


@pytest.mark.parametrize("form", ["bitsandbytes", "compressed-tensors"])
def test_there_and_back_the_same_bytes(tmp_path, folder, form):
    how = {"dtype": "nf4", "double_quant": True} if form == "bitsandbytes" else {"dtype": "int4_clip"}
    ours = quantized(folder, tmp_path / "ours", **how)
    convert(ours, tmp_path / "theirs", to=form)
    convert(tmp_path / "theirs", tmp_path / "back")
    convert(tmp_path / "back", tmp_path / "again", to=form)
    assert (tmp_path / "theirs" / "model.safetensors").read_bytes() == (
        tmp_path / "again" / "model.safetensors"
    ).read_bytes()
    first, back = Checkpoint(ours), Checkpoint(tmp_path / "back")
    for name in first.weights:
        for suffix, tensor in first.read_weight(name).tensors().items():
            assert torch.equal(tensor, back.read_weight(name).tensors()[suffix]), (name, suffix)


def test_what_does_not_fit_is_named_before_any_work(tmp_path, folder):
    ours = write(folder, tmp_path / "ours", dtype="int4_clip", group_size=48)
    with pytest.raises(PlanError) as caught:
        convert(ours, tmp_path / "theirs", to="bitsandbytes")
    assert "model.layers.0.mlp.down_proj.weight" in str(caught.value)
    assert "int4_clip is not one of its tables" in str(caught.value)
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("form", ["bitsandbytes", "compressed-tensors"])
def test_a_lossy_step_is_taken_when_asked_for(tmp_path, folder, form):
    dtype = {"bitsandbytes": "int4_clip", "compressed-tensors": "nf4"}[form]
    ours = quantized(folder, tmp_path / "ours", dtype=dtype)
    done = convert(ours, tmp_path / "theirs", to=form, requantize=True)
    assert len(done.losses) == 14
    assert all(0 < loss < 0.2 for loss in done.losses.values())
    assert logits(woqfx.load(tmp_path / "theirs")).isfinite().all()


def test_nvfp4_there_and_back(tmp_path):
    theirs, _ = quantized_folder(tmp_path / "theirs", NVFP4_CONFIG, nvfp4_encode, dtype=torch.float32)
    convert(theirs, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "again", to="compressed-tensors")
    first, again = (load_file(folder / "model.safetensors") for folder in (theirs, tmp_path / "again"))
    assert set(first) == set(again)
    for name, tensor in first.items():
        assert torch.equal(tensor.float(), again[name].float()), name


def test_4_bit_floats_fit_if_their_scales_do(tmp_path, folder):
    """Scales of any size are neither float8 numbers with one factor nor powers of two."""
    ours = quantized(folder, tmp_path / "ours", dtype="fp4_e2m1", group_size=16)
    with pytest.raises(PlanError, match="not float8 numbers with one factor"):
        convert(ours, tmp_path / "theirs", to="compressed-tensors")


def test_types_on_disk_are_those_of_the_layout(tmp_path, folder):
    ours = quantized(folder, tmp_path / "ours", dtype="int4_clip", scale_dtype="bf16")
    convert(ours, tmp_path / "theirs", to="compressed-tensors")
    with TensorFile(tmp_path / "theirs" / "model.safetensors") as file:
        prefix = "model.layers.0.self_attn.q_proj."
        found = {name.removeprefix(prefix): entry.dtype for name, entry in file.entries.items() if prefix in name}
    assert found == {
        "weight_packed": torch.int32,
        "weight_scale": torch.bfloat16,
        "weight_shape": torch.int64,
    }
