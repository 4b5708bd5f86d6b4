"""A model from a pack cache is the model from the checkpoint, bit for bit, and reads no quantized weight again."""

from __future__ import annotations

import pytest
import torch
from folders_of_models import saved, write
from tiny_models import tiny_model

import woqfx
from woqfx.disk.checkpoint import Checkpoint
from woqfx.errors import WoqfxError

IDS = torch.arange(1, 9)[None]

#: What makes weights of several kinds lie in a cache: joined ones, rows of a fused one, stacks, and orders.
CASES = {
    "llama, joined": ("llama", {}),
    "llama, key otherwise": ("llama", {"rules": ["*.k_proj=nf4"]}),
    "llama, double quantized": ("llama", {"dtype": "nf4", "double_quant": True}),
    "phi3, fused": ("phi3", {"symmetric": False}),
    "gpt2, transposed": ("gpt2", {"compute_dtype": "int8"}),
    "mixtral, stacks": ("mixtral", {"dtype": "int8"}),
}


def logits(folder, **options):
    with torch.no_grad():
        return woqfx.load(folder, backend="llm_runtime", backend_options=options)(IDS).logits


def state(cache):
    return {file.name: (file.stat().st_mtime_ns, file.stat().st_size) for file in cache.iterdir()}


@pytest.mark.parametrize("case", CASES)
def test_a_model_from_the_cache_is_the_same_model(case, tmp_path, monkeypatch):
    family, changes = CASES[case]
    folder, cache = write(saved(family, tmp_path), tmp_path / "out", **changes), tmp_path / "cache"
    expected = logits(folder)
    assert torch.equal(logits(folder, pack_cache=str(cache)), expected)
    before = state(cache)
    monkeypatch.setattr(Checkpoint, "read_weight", None)  # nothing is read again
    monkeypatch.setattr("woqfx_llm_runtime.packing.quantize_nearest", None)  # nor is the head quantized again
    assert torch.equal(logits(folder, pack_cache=str(cache)), expected)
    assert state(cache) == before


def test_experts_whose_scales_need_different_types(tmp_path):
    model = tiny_model("mixtral")
    for name, parameter in model.named_parameters():
        if "experts" in name:
            parameter.data[0] = 0  # whose scales are 1, and fit into 16 bits
    model.save_pretrained(tmp_path / "model")
    folder, cache = write(tmp_path / "model", tmp_path / "out", scale_dtype="fp32"), str(tmp_path / "cache")
    expected = logits(folder, head="keep")
    for _ in range(2):
        assert torch.equal(logits(folder, head="keep", pack_cache=cache), expected)
    with torch.no_grad():
        torch.testing.assert_close(woqfx.load(folder)(IDS).logits, expected, rtol=1e-2, atol=5e-3)


def test_weights_that_take_inputs_in_one_order_are_joined_others_are_not(tmp_path, monkeypatch):
    folder, cache = tmp_path / "out", tmp_path / "cache"
    model = woqfx.quantize(saved("llama", tmp_path), dtype="int4_clip", out=folder)
    del model
    stored = Checkpoint(folder)
    read = Checkpoint.read_weight
    orders = {"q_proj": 1, "k_proj": 1, "v_proj": 2}

    def shuffled(self, name):
        q = read(self, name).ordered()
        seed = orders.get(name.split(".")[-2], 3)
        order = torch.randperm(q.in_features, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
        return type(q).of_parts(q.dtype, q.scheme, q.shape, {**q.tensors(), "order": order})

    monkeypatch.setattr(Checkpoint, "read_weight", shuffled)
    expected = logits(folder)
    assert torch.equal(logits(folder, pack_cache=str(cache)), expected)
    filled = state(cache)
    layers = sum(name.endswith("q_proj.weight") for name in stored.weights)
    assert len(filled) == layers * 5 + 1  # of a layer q with k, v, o, gate with up, down; and the head
    monkeypatch.setattr(Checkpoint, "read_weight", None)
    assert torch.equal(logits(folder, pack_cache=str(cache)), expected)


def test_a_head_that_is_kept_is_not_in_the_cache(tmp_path):
    folder, cache = write(saved("llama", tmp_path), tmp_path / "out"), tmp_path / "cache"
    logits(folder, pack_cache=str(cache), head="keep")
    few = set(state(cache))
    logits(folder, pack_cache=str(cache))
    assert len(set(state(cache)) - few) == 1
    assert torch.equal(logits(folder, pack_cache=str(cache), head="keep"), logits(folder, head="keep"))


def test_damage_is_mended(tmp_path):
    folder, cache = write(saved("llama", tmp_path), tmp_path / "out"), tmp_path / "cache"
    expected = logits(folder, pack_cache=str(cache))
    good = {file: file.read_bytes() for file in cache.iterdir()}
    for file, data in good.items():
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert torch.equal(logits(folder, pack_cache=str(cache)), expected)
    assert {file: file.read_bytes() for file in cache.iterdir()} == good


def test_a_model_in_memory_has_no_cache(tmp_path):
    with pytest.raises(WoqfxError, match="is not a checkpoint in files: load it without a pack cache"):
        woqfx.quantize(
            saved("llama", tmp_path), backend="llm_runtime", backend_options={"pack_cache": str(tmp_path / "cache")}
        )
