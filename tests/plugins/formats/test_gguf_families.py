"""GGUF files of every family that is written: names, metadata and the order of rows, by readers that are not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from folders_of_models import logits, write
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

import woqfx
from woqfx.errors import CheckpointError
from woqfx.loading import open_checkpoint
from woqfx.transcoding import convert
from woqfx_formats.gguf_families import FAMILIES

HEAD = 16
GEMMA = {"query_pre_attn_scalar": HEAD}
#: A family of the tiny models, and what a GGUF file needs of it.
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "mixtral": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"norm_topk_prob": True, "moe_intermediate_size": 64},
    "phi3": {},
    "gemma2": GEMMA,
    "gemma3": {**GEMMA, "num_hidden_layers": 6},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "granite": {"logits_scaling": 3, "embedding_multiplier": 2.5},
    "olmo2": {},
    "gpt2": {},
    "gpt_neox": {},
}
#: Numbers that transformers' reader of GGUF does not read, but takes for granted.
TAKEN: dict[str, dict[str, Any]] = {
    "mistral": {},
    "qwen3": {"head_dim": 128},
    "qwen3_moe": {"moe_intermediate_size": 768},
    "phi3": {"vocab_size": 32064},
    "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256},
    "gemma3": {"head_dim": 256, "query_pre_attn_scalar": 256},
}


def exported(folder: Path, family: str, **changes: Any) -> tuple[Path, Path]:
    """A tiny model as a checkpoint of ours, and as a GGUF file."""
    tiny_model(family, **{**CHANGES[family], **changes}).save_pretrained(folder / "model")
    ours = write(folder / "model", folder / "ours", dtype="int8", group_size=32)
    convert(ours, folder / "theirs", to="gguf")
    return ours, folder / "theirs" / "model.gguf"


def test_every_family_has_a_case():
    kinds = {tiny_model(family, **CHANGES[family]).config.model_type for family in CHANGES}
    assert kinds == set(FAMILIES)


@pytest.mark.parametrize("family", CHANGES)
def test_every_tensor_is_one_that_llama_cpp_looks_for(tmp_path, family):
    """By the lists of the gguf package; what llama.cpp computes is in benchmarks/results/gguf_families.md."""
    ours, path = exported(tmp_path, family)
    reader = gguf.GGUFReader(path)
    name = reader.fields["general.architecture"].contents()
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    known = {gguf.TENSOR_NAMES[kind].format(bid=layer) for kind in gguf.MODEL_TENSORS[arch] for layer in range(6)}
    found = [tensor.name for tensor in reader.tensors]
    assert len(found) == len(set(found))
    assert {one.rpartition(".")[0] for one in found} <= known
    stored = open_checkpoint(ours)
    elements = sum(np.prod(weight.shape) for weight in stored.weights.values())
    elements += sum(np.prod(info.shape) for info in stored.kept.values())
    assert sum(int(tensor.n_elements) for tensor in reader.tensors) == elements


@pytest.mark.parametrize("family", TAKEN)
def test_transformers_reads_the_same_model(tmp_path, family):
    ours, path = exported(tmp_path, family, **TAKEN[family])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.modeling_utils.is_accelerate_available", lambda *_: True)
        theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert torch.allclose(logits(theirs), logits(woqfx.load(ours)), atol=2e-5)


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma2", "gemma3"])
def test_and_so_does_woqfx(tmp_path, family):
    ours, path = exported(tmp_path, family, **TAKEN[family])
    assert torch.allclose(logits(woqfx.load(path)), logits(woqfx.load(ours)), atol=1e-6)


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return {one.name: gguf.dequantize(one.data, one.tensor_type) for one in gguf.GGUFReader(path).tensors}


def test_the_rows_of_gpt_neox(tmp_path):
    """[heads, 3, size] becomes [3, heads, size], as llama.cpp's converter says of it."""
    ours, path = exported(tmp_path, "gpt_neox")
    weight = open_checkpoint(ours).read_weight("gpt_neox.layers.1.attention.query_key_value.weight").dequantize()
    found = tensors_of(path)["blk.1.attn_qkv.weight"]
    for head in range(4):
        for kind in range(3):
            rows = found[kind * 64 + head * 16 :][:16]
            assert np.array_equal(rows, weight[head * 48 + kind * 16 :][:16].numpy())


def test_experts_are_taken_apart(tmp_path):
    ours, path = exported(tmp_path, "mixtral")
    stored, found = open_checkpoint(ours), tensors_of(path)
    both = stored.read_weight("model.layers.0.mlp.experts.gate_up_proj").dequantize().numpy()
    assert np.array_equal(found["blk.0.ffn_gate_exps.weight"], both[:, :96])
    assert np.array_equal(found["blk.0.ffn_up_exps.weight"], both[:, 96:])
    down = stored.read_weight("model.layers.0.mlp.experts.down_proj").dequantize().numpy()
    assert np.array_equal(found["blk.0.ffn_down_exps.weight"], down)


def test_norms_of_gemma_are_stored_plus_one(tmp_path):
    ours, path = exported(tmp_path, "gemma2")
    found = tensors_of(path)["blk.1.post_ffw_norm.weight"]
    kept = open_checkpoint(ours).read_kept("model.layers.1.post_feedforward_layernorm.weight")
    assert np.array_equal(found, kept.numpy() + np.float32(1))


def test_settings_have_the_types_that_llama_cpp_reads(tmp_path):
    """A whole number in config.json where llama.cpp wants a fraction."""
    _, path = exported(tmp_path, "granite")
    field = gguf.GGUFReader(path).fields["granite.logit_scale"]
    assert (field.types, field.contents()) == ([gguf.GGUFValueType.FLOAT32], 3.0)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "experts-not-scaled": ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
    "another-activation": ("llama", {"hidden_act": "gelu"}, "the activation is silu or swish, not gelu"),
    "another-scale-of-scores": ("gemma2", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"),
    "another-row-of-windows": ("gemma3", {"layer_types": ["full_attention"] * 6}, "layer_types"),
    "rotary-everywhere": ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "no_rope_layers"),
    "yarn": (
        "qwen3",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
        "rotary embeddings are of type default or linear, not yarn",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_gguf_file_cannot_say_is_refused(tmp_path, case):
    family, changes, said = REFUSED[case]
    with pytest.raises(CheckpointError, match="takes for granted") as caught:
        exported(tmp_path, family, **changes)
    assert said in str(caught.value)
    assert not (tmp_path / "theirs").exists()
