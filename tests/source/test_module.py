"""Live modules."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from torch import nn

from woqfx.errors import SourceError
from woqfx.source import ModuleSource, TensorInfo, open_source


class Plain(nn.Module):
    """Any module: a tie, a persistent buffer, one that is not, and an absent bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, bias=False)
        self.second = nn.Linear(3, 4)
        self.second.weight = self.first.weight
        self.register_buffer("steps", torch.arange(2))
        self.register_buffer("cache", torch.zeros(2), persistent=False)


def test_a_plain_module_is_listed_in_the_order_of_its_tree() -> None:
    model = Plain()
    source = open_source(model)
    assert list(source.tensors.items()) == [
        ("steps", TensorInfo((2,), torch.int64)),
        ("first.weight", TensorInfo((4, 3), torch.float32)),
        ("second.bias", TensorInfo((4,), torch.float32)),
    ]
    assert source.aliases == {"second.weight": "first.weight"}
    assert (source.skeleton, source.label, source.resumable) == (model, "Plain", False)
    assert (source.config(), dict(source.sidecars()), source.unexpected) == (None, {}, ())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_model_is_there_once(family: str) -> None:
    model = tiny_model(family)
    source = ModuleSource(model)
    assert {*source.tensors, *source.aliases} == set(model.state_dict())
    assert set(source.aliases.values()) <= set(source.tensors)
    for name in source.tensors:
        assert torch.equal(source.read(name), model.state_dict()[name])


def test_what_is_read_is_contiguous_and_carries_no_gradient() -> None:
    model = nn.Linear(3, 4)
    model.weight = nn.Parameter(torch.randn(3, 4).t())
    read = ModuleSource(model).read("weight")
    assert read.is_contiguous()
    assert not read.requires_grad
    assert torch.equal(read, model.weight)


def test_a_model_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 4)
    with pytest.raises(SourceError, match=r"2 tensors without data.* weight"):
        ModuleSource(model)


def test_a_quantized_model_is_refused_and_a_dequantized_one_is_not() -> None:
    model = nn.Linear(3, 4)
    model.is_quantized = True  # what transformers sets, and leaves when it dequantizes on loading
    assert ModuleSource(model).tensors
    model.weight = nn.Parameter(torch.zeros(4, 3, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(SourceError, match="quantized already"):
        ModuleSource(model)


def test_the_fingerprint_follows_a_change_in_place() -> None:
    model = nn.Linear(3, 4)
    source = ModuleSource(model)
    before = source.fingerprint()
    assert source.fingerprint() == before
    with torch.no_grad():
        model.weight.mul_(2)
    assert source.fingerprint() != before


def test_a_models_config_has_no_traces_of_this_machine() -> None:
    model = tiny_model("mixtral", dtype=torch.bfloat16)
    model.config.name_or_path = "some/where"
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    config = ModuleSource(model).config()
    assert config == ModuleSource(tiny_model("mixtral", dtype=torch.bfloat16)).config()
    assert config is not None
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert "some/where" not in str(config)


def test_a_head_untied_by_hand_is_written_as_untied():
    model = tiny_model("llama", tie_word_embeddings=True)
    assert ModuleSource(model).config().get("tie_word_embeddings")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert ModuleSource(model).config()["tie_word_embeddings"] is False
