"""What people do with a module, done with a quantized one."""

from __future__ import annotations

import copy

import pytest
import torch
from folders_of_models import contents, digests, logits, saved, write
from tiny_models import tiny_inputs, tiny_model
from torch import nn

import woqfx
from woqfx.layers import packed_weights


class Net(nn.Module):
    """No transformers model: two linears, one of them used twice, an embedding, a norm, a buffer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(24, 40)
        self.first = nn.Linear(40, 40)
        self.again = nn.Sequential(nn.GELU(), self.first)
        self.norm = nn.LayerNorm(40)
        self.last = nn.Linear(40, 12, bias=False)
        self.register_buffer("offset", torch.arange(12.0))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.again(self.first(self.embed(tokens))))) + self.offset


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


TOKENS = torch.tensor([[1, 5, 23, 0]])


def test_any_module_goes_round(net, tmp_path):
    kept = copy.deepcopy(net)
    assert woqfx.quantize(net, rules=["embed=int8"], out=tmp_path / "out") is net
    loaded = woqfx.load(tmp_path / "out", model=Net())
    assert torch.equal(loaded(TOKENS), net(TOKENS))
    assert loaded.first.weight is loaded.again[1].weight
    woqfx.save(loaded, tmp_path / "again")
    assert digests(tmp_path / "out") == digests(tmp_path / "again")
    found = contents(tmp_path / "out")
    assert found.keys() == {*kept.state_dict()} - {"again.1.weight", "again.1.bias"}
    for name in ("norm.weight", "first.bias", "offset"):
        assert torch.equal(found[name], kept.state_dict()[name])


def test_a_skeleton_may_be_on_the_meta_device(net, tmp_path):
    woqfx.quantize(net, out=tmp_path / "out")
    with torch.device("meta"):
        skeleton = Net()
    assert torch.equal(woqfx.load(tmp_path / "out", model=skeleton)(TOKENS), net(TOKENS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_moving_to_another_float_type(dtype):
    model = woqfx.quantize(tiny_model("llama"))
    before = {name: weight.qtensor().tensors() for name, weight in packed_weights(model).items()}
    model.to(dtype)
    assert model.dtype == dtype
    assert logits(model).dtype == dtype
    for name, weight in packed_weights(model).items():
        assert weight.dtype == dtype
        for suffix, part in weight.qtensor().tensors().items():
            assert part.dtype == before[name][suffix].dtype
            assert torch.equal(part, before[name][suffix])


def test_a_deep_copy_is_independent_and_equal(tmp_path, net):
    write(saved("qwen2", tmp_path), tmp_path / "out")
    model = woqfx.load(tmp_path / "out")
    twin = copy.deepcopy(model)
    expected = logits(model)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.zero_()
    assert torch.equal(logits(twin), expected)
    woqfx.save(twin, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(tmp_path / "out")


def test_a_state_dict_goes_into_a_model_quantized_alike(tmp_path):
    from safetensors.torch import load_file, save_file

    model, other = woqfx.quantize(tiny_model("llama")), woqfx.quantize(tiny_model("llama", seed=1))
    assert not torch.equal(logits(model), logits(other))
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(logits(model), logits(other))


def test_a_quantized_layer_compiles_as_one_graph(net):
    woqfx.quantize(net, rules=["embed=int8"])
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(TOKENS), net(TOKENS))


@pytest.mark.slow
def test_a_quantized_layer_compiles_with_inductor():
    layer = woqfx.quantize(nn.Sequential(nn.Linear(32, 8))).eval()
    x = torch.randn(3, 32)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x))


def test_meta_tensors_pass_through(net):
    quantized = woqfx.quantize(net, rules=["embed=int8"]).to("meta")
    assert quantized(TOKENS.to("meta")).shape == (1, 4, 12)
    assert quantized(TOKENS.to("meta")).is_meta


def test_gradients_reach_the_input_as_through_the_dequantized_weight():
    model = woqfx.quantize(nn.Sequential(nn.Linear(48, 7)))
    x = torch.randn(5, 48, requires_grad=True)
    model(x).sin().sum().backward()
    twin = x.detach().requires_grad_()
    weight = model[0].weight.qtensor().dequantize()
    nn.functional.linear(twin, weight, model[0].bias.detach()).sin().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)
    assert model[0].bias.grad is not None


def test_gradients_reach_embeddings_of_a_whole_model():
    model = woqfx.quantize(tiny_model("llama"))
    model(**tiny_inputs(model)).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_no_dense_weight_outlives_quantizing():
    import gc
    import weakref

    model = tiny_model("llama")
    dense = [weakref.ref(parameter) for name, parameter in model.named_parameters() if "proj" in name]
    woqfx.quantize(model)
    gc.collect()
    assert dense
    assert not [reference for reference in dense if reference() is not None]
