from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_config

from woqfx.config import build, harmless
from woqfx.errors import CheckpointError
from woqfx.skeleton import build_skeleton, named_state


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ordinary_config_builds_the_ordinary_model(family):
    config = tiny_config(family)
    expected = {name: tensor.shape for name, tensor in named_state(build_skeleton(config))}
    model = build(config.to_dict(), len(expected), "here")
    assert {name: tensor.shape for name, tensor in named_state(model)} == expected
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_model_of_many_modules_is_built_if_the_files_can_fill_it():
    config = tiny_config("llama", num_hidden_layers=300)
    assert len(list(build(config.to_dict(), 300 * 9 + 3, "here").model.layers)) == 300


def test_more_modules_than_the_files_can_fill_are_not_built():
    with pytest.raises(CheckpointError, match=r"here: .* more than 10030 modules"):
        build(tiny_config("llama", num_hidden_layers=5000).to_dict(), 3, "here")


def test_counting_modules_ends_with_the_call():
    config = tiny_config("llama", num_hidden_layers=5000)
    with pytest.raises(CheckpointError):
        build(config.to_dict(), 3, "here")
    torch.nn.Sequential(*[torch.nn.Identity() for _ in range(20_000)])


def test_masks_of_terabytes_are_not_computed():
    config = {"model_type": "gpt_neo", "max_position_embeddings": 1 << 20, "hidden_size": 16, "num_heads": 2}
    config |= {"num_layers": 1, "attention_types": [[["global"], 1]], "vocab_size": 16}
    with pytest.raises(CheckpointError, match="bytes of computed buffers"):
        build(config, 20, "here")


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("num_hidden_layers", (1 << 20) + 1, True),
        ("num_labels", -(1 << 21), True),
        ("vocab_size", 1 << 21, False),
        ("rope_theta", 10**9, False),
        ("max_position_embeddings", 1 << 24, False),
        ("model_max_length", 1 << 41, True),
    ],
)
def test_numbers_of_things_are_bounded_and_measures_less_so(key, value, refused):
    config = {"model_type": "no such model", "text_config": {"inner": [{key: value}]}}
    with pytest.raises(CheckpointError, match=f"'{key}' = " if refused else "no model that transformers knows"):
        build(config, 1, "here")


def test_keys_that_run_code_are_left_out_at_any_depth():
    trap = {"auto_map": {"AutoModel": "evil.Model"}, "_attn_implementation": "evil/kernel", "trust_remote_code": True}
    trap |= {"_experts_implementation_internal": "evil", "quantization_config": {}, "_name_or_path": "evil"}
    config = {"model_type": "llama", "vision_config": {"depth": 2, **trap}, "parts": [{"size": 1, **trap}], **trap}
    assert harmless(config) == {"model_type": "llama", "vision_config": {"depth": 2}, "parts": [{"size": 1}]}
