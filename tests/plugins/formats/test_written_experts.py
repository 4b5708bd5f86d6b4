"""Stacks of experts, which other programs' folders hold as layers one by one: packed there, as here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from folders_of_models import contents, saved, write
from foreign_folders import AWQ_CONFIG, Encode, assert_means, awq_encode, gptq_config, gptq_encode, quantized_folder
from safetensors.torch import load_file
from tiny_models import tiny_model

from woqfx.errors import PlanError
from woqfx.foreign.naming import FileNames
from woqfx.loading import open_checkpoint
from woqfx.transcoding import convert

#: As AutoAWQ and GPTQModel name the layers of expert 3 in block 1, and the router.
NAMES = {
    "mixtral": ("block_sparse_moe.experts.3", {"gate": "w1", "up": "w3", "down": "w2"}, "block_sparse_moe.gate"),
    "qwen3_moe": ("mlp.experts.3", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}, "mlp.gate"),
}
CHANGES: dict[str, dict[str, Any]] = {"mixtral": {}, "qwen3_moe": {"moe_intermediate_size": 64}}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: part for file in folder.glob("*.safetensors") for name, part in load_file(file).items()}


ROUND_TRIPS: dict[str, tuple[str, dict[str, Any], Encode]] = {
    "awq": ("awq", AWQ_CONFIG, awq_encode()),
    "gptq": ("gptq", gptq_config(), gptq_encode(4)),
    "gptq-8": ("gptq", gptq_config(bits=8), gptq_encode(8)),
    "gptq-act": ("gptq", gptq_config(sym=False, desc_act=True), gptq_encode(4, symmetric=False, act_order=True)),
}


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_to_woqfx_and_back_gives_the_same_bytes(tmp_path, case, family):
    form, config, encode = ROUND_TRIPS[case]
    folder, dense = quantized_folder(tmp_path / "theirs", config, encode, family=family, **CHANGES[family])
    convert(folder, tmp_path / "ours")
    done = convert(tmp_path / "ours", tmp_path / "back", to=form)
    assert done.losses == {}
    first, again = tensors(folder), tensors(tmp_path / "back")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert_means(tmp_path / "back", dense)


@pytest.mark.parametrize("form", ["awq", "gptq", "compressed-tensors"])
@pytest.mark.parametrize("family", NAMES)
def test_experts_stay_packed_under_the_names_that_readers_know(tmp_path, family, form):
    """Quantized here, written there, read again: the weights bit for bit, though they were never a stack on disk."""
    source = saved(family, tmp_path, **CHANGES[family])
    ours = write(source, tmp_path / "ours", dtype="int4_clip", group_size=32)
    assert convert(ours, tmp_path / "theirs", to=form).losses == {}
    experts, leaves, router = NAMES[family]
    stored = tensors(tmp_path / "theirs")
    packed = "weight_packed" if form == "compressed-tensors" else "qweight"
    assert {f"model.layers.1.{experts}.{leaf}.{packed}" for leaf in leaves.values()} <= set(stored)
    assert f"model.layers.1.{router}.weight" in stored
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())["quantization_config"]
    left = config.get("ignore") or config.get("modules_to_not_convert") or list(config["dynamic"])
    assert any(
        f"model.layers.1.{router}".replace(".", r"\.") in one or f"model.layers.1.{router}" == one for one in left
    )
    convert(tmp_path / "theirs", tmp_path / "back")
    first, again = contents(ours), contents(tmp_path / "back")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_an_expert_is_what_transformers_saves(tmp_path):
    """By its own rules for saving, on the weights themselves."""
    ours = write(saved("mixtral", tmp_path), tmp_path / "ours", dtype="int8", group_size=32)
    stored = open_checkpoint(ours)
    names = FileNames(stored)
    expected = load_file(saved("mixtral", tmp_path) / "model.safetensors")
    tree = tiny_model("mixtral").state_dict()
    stack = "model.layers.0.mlp.experts.gate_up_proj"
    for matrix in names.matrices(stack):
        assert torch.equal(tree[stack][matrix.expert][matrix.rows], expected[matrix.name])
    assert len(names.matrices(stack)) == 8


def test_bitsandbytes_has_no_experts(tmp_path):
    ours = write(
        saved("mixtral", tmp_path), tmp_path / "ours", dtype="nf4", group_size=64, rules=["*=keep", "*exp*=nf4"]
    )
    with pytest.raises(PlanError, match="linear layers alone"):
        convert(ours, tmp_path / "theirs", to="bitsandbytes")
