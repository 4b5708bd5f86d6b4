"""Every family of models: quantized live or loaded, the same logits, and those of a dense model with its weights."""

from __future__ import annotations

import pytest
import torch
from folders_of_models import contents, logits
from tiny_models import FAMILIES, tiny_inputs, tiny_model

import woqfx
from woqfx.layers import find_layers, packed_weights

EVERYTHING = ["*=int4_clip"]
TIES = [
    ("llama", True),
    ("llama", False),
    ("gpt2", True),
    ("gpt2", False),
    ("t5", True),
    ("opt", True),
]  # T5 is always tied


def dense_twin(family: str, quantized: torch.nn.Module, **changes) -> torch.nn.Module:
    """The float model with each quantized weight replaced by what is stored for it."""
    twin = tiny_model(family, **changes)
    transposed = {layer.weight for layer in find_layers(twin) if layer.transposed}
    with torch.no_grad():
        for name, weight in packed_weights(quantized).items():
            value = weight.qtensor().dequantize()
            twin.get_parameter(name).copy_(value.T if name in transposed else value)
    return twin


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_equals_live_and_its_dense_twin(family, tmp_path):
    live = woqfx.quantize(tiny_model(family), out=tmp_path / "out")
    found = logits(live)
    assert torch.equal(logits(woqfx.load(tmp_path / "out")), found)
    torch.testing.assert_close(found, logits(dense_twin(family, live)), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, logits(tiny_model(family)), rtol=1e-4, atol=1e-4), "nothing was quantized"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_generates_as_its_dense_twin(family, tmp_path):
    # int8, so that no near tie between two tokens is decided by the order of additions
    live = woqfx.quantize(tiny_model(family), dtype="int8", out=tmp_path / "out")
    loaded, twin = woqfx.load(tmp_path / "out"), dense_twin(family, live)
    tokens = {"input_ids": tiny_inputs(twin)["input_ids"][:1]}
    settings = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}
    found = loaded.generate(**tokens, **settings)
    assert torch.equal(found, live.generate(**tokens, **settings))
    assert torch.equal(found, twin.generate(**tokens, **settings))


@pytest.mark.parametrize(("family", "tied"), TIES, ids=[f"{f}-{'tied' if t else 'untied'}" for f, t in TIES])
def test_embeddings_and_heads_on_request(family, tied, tmp_path):
    changes = {"tie_word_embeddings": tied}
    live = woqfx.quantize(tiny_model(family, **changes), rules=EVERYTHING, out=tmp_path / "out")
    loaded = woqfx.load(tmp_path / "out")
    embedding, head = loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight
    assert isinstance(embedding, woqfx.PackedWeight)
    assert isinstance(head, woqfx.PackedWeight)
    assert (embedding is head) == tied
    assert torch.equal(logits(loaded), logits(live))
    torch.testing.assert_close(logits(loaded), logits(dense_twin(family, live, **changes)), rtol=1e-4, atol=1e-4)
    assert ("lm_head.weight" in contents(tmp_path / "out")) != tied


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_stacked_experts_are_quantized(family):
    weights = packed_weights(woqfx.quantize(tiny_model(family)))
    experts = [name for name in weights if "experts" in name]
    assert len(experts) == 4  # gate_up and down, of two layers
    assert all(len(weights[name].shape) == 3 for name in experts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_half_precision_model_stays_one(dtype, tmp_path):
    live = woqfx.quantize(tiny_model("llama", dtype=dtype), out=tmp_path / "out")
    loaded = woqfx.load(tmp_path / "out")
    assert loaded.dtype == dtype
    assert logits(loaded).dtype == dtype
    assert torch.equal(logits(loaded), logits(live))
