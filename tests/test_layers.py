from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from torch import nn

import woqfx
from woqfx.layers import Role, find_layers, packed_weights
from woqfx.places import Places


def found(model: nn.Module) -> dict[str, tuple[Role, tuple[int, ...]]]:
    return {layer.weight: (layer.role, layer.shape) for layer in find_layers(model)}


@pytest.mark.parametrize("family", FAMILIES)
def test_almost_all_weights_are_found(family):
    model = tiny_model(family, **({"tie_word_embeddings": True} if family == "bart" else {}))
    names = {layer.weight for layer in find_layers(model)}
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() >= 2}
    missed = {name for name in matrices - names if not any(word in name for word in ("gate.weight", "conv.conv"))}
    assert not missed


def test_roles_and_shapes_of_a_llama():
    layers = found(tiny_model("llama"))
    assert layers["model.embed_tokens.weight"] == (Role.EMBEDDING, (128, 64))
    assert layers["lm_head.weight"] == (Role.HEAD, (128, 64))
    assert layers["model.layers.1.mlp.down_proj.weight"] == (Role.LINEAR, (64, 96))
    assert len(layers) == 2 * 7 + 2


def test_a_tied_head_is_the_embedding_under_another_name():
    layers = {layer.name: layer for layer in find_layers(tiny_model("qwen2"))}
    assert layers["model.embed_tokens"].others == ("lm_head",)
    assert layers["model.embed_tokens"].role is Role.EMBEDDING
    assert "lm_head" not in layers


def test_conv1d_is_a_linear_layer_stored_transposed():
    model = tiny_model("gpt2")
    (layer,) = (layer for layer in find_layers(model) if layer.name == "transformer.h.0.mlp.c_fc")
    stored = model.transformer.h[0].mlp.c_fc.weight
    assert (layer.shape, layer.transposed) == ((96, 64), True)
    assert torch.equal(layer.logical(stored), stored.T)
    assert layer.logical(stored).is_contiguous()


def test_experts_are_stacks_under_their_parameters_name():
    layers = found(tiny_model("mixtral"))
    assert layers["model.layers.0.mlp.experts.gate_up_proj"] == (Role.EXPERTS, (4, 192, 64))
    assert layers["model.layers.0.mlp.experts.down_proj"] == (Role.EXPERTS, (4, 64, 96))


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_cannot_be_quantized_says_why():
    model = nn.Sequential(Scaled(4, 4), nn.Embedding(4, 4, max_norm=1.0), nn.Linear(4, 4))
    scaled, embedding, plain = find_layers(model)
    assert "Scaled has a forward of its own" in scaled.obstacle
    assert "max_norm" in embedding.obstacle
    assert plain.obstacle == ""


def test_a_packed_weight_takes_every_place_of_the_parameter():
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": nn.Linear(8, 8)})
    model["c"].weight = shared.weight
    grid = woqfx.registry().dtype("int8")
    q = woqfx.quantize_nearest(shared.weight.detach(), grid, woqfx.Scheme("int8"), name="a")
    packed = woqfx.registry().backend("torch_cpu").pack(q, torch.float32)
    Places(model, "here").install("a.weight", packed)
    assert model["a"].weight is model["b"][0].weight is model["c"].weight is packed
    assert packed_weights(model) == {"a.weight": packed}
    assert {name for name, _ in model.named_parameters()} == {"a.bias", "c.bias"}
    x = torch.randn(2, 8)
    assert torch.equal(model["c"](x), packed.linear(x, model["c"].bias))


def test_a_model_that_is_one_layer(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(32, 8)
    weight = model.weight.detach().clone()
    woqfx.quantize(model, dtype="int8", out=tmp_path / "out")
    assert packed_weights(model).keys() == {"weight"}
    torch.testing.assert_close(model.weight.dequantize(), weight, atol=0.005, rtol=0)
    assert torch.equal(woqfx.load(tmp_path / "out", model=nn.Linear(32, 8, device="meta")).bias, model.bias)


def test_layers_without_weights_are_left_alone():
    model = nn.Sequential(nn.Linear(0, 8), nn.Linear(8, 8), nn.Linear(8, 0))
    assert [layer.name for layer in find_layers(model)] == ["1"]
    assert woqfx.quantize(model)(torch.zeros(3, 0)).shape == (3, 0)


def test_the_head_of_a_task_is_kept():
    from transformers import LlamaForSequenceClassification

    layers = find_layers(LlamaForSequenceClassification(tiny_model("llama").config))
    assert [layer.role for layer in layers if layer.name == "score"] == [Role.HEAD]


def test_weights_that_are_used_in_another_way_are_kept():
    attention = woqfx.quantize(nn.Sequential(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)))
    assert {name.rpartition(".")[0] for name in packed_weights(attention)} == {"0.linear1", "0.linear2"}
    assert attention.train()(torch.randn(2, 5, 32)).shape == (2, 5, 32)


def test_a_mamba_generates():
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=1, time_step_rank=8)
    model = woqfx.quantize(MambaForCausalLM(config).eval())
    assert len(packed_weights(model)) == 3
    assert model.generate(torch.tensor([[1, 2]]), max_new_tokens=3, do_sample=False).shape[1] > 2
