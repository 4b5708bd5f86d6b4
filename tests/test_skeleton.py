"""The skeleton is transformers' own model without its weights, and comes back to life as `from_pretrained` does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from tiny_models import FAMILIES, tiny_config, tiny_inputs, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig

from woqfx.errors import CheckpointError, SourceError
from woqfx.skeleton import (
    build_skeleton,
    has_tied_head,
    initial_buffers,
    materialize,
    named_state,
    tied_aliases,
    told_untied,
    untie_head,
)

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel


def place(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor where a loader would put it."""
    prefix, _, leaf = name.rpartition(".")
    module = model.get_submodule(prefix)
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False) if leaf in module._parameters else tensor)


def filled(model: PreTrainedModel) -> PreTrainedModel:
    """A skeleton of `model` with its tensors in place, the tied ones under one name only."""
    skeleton = build_skeleton(model.config)
    aliases = tied_aliases(skeleton)
    for name, tensor in named_state(model):
        if name not in aliases:
            place(skeleton, name, tensor.detach().clone())
    return skeleton


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_has_the_models_tensors_without_data(family: str) -> None:
    model = tiny_model(family)
    skeleton = build_skeleton(model.config)
    assert type(skeleton) is type(model)
    assert not skeleton.training
    assert {n: t.shape for n, t in named_state(skeleton)} == {n: t.shape for n, t in model.state_dict().items()}
    assert [n for n, _ in named_state(model)] == list(model.state_dict())
    assert all(t.is_meta for _, t in named_state(skeleton))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_filled_skeleton_equals_from_pretrained(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(family, dtype=dtype)
    model.save_pretrained(tmp_path)
    auto = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
    loaded = auto.from_pretrained(tmp_path)
    skeleton = filled(loaded)
    before = torch.get_rng_state()
    materialize(skeleton)
    assert torch.equal(torch.get_rng_state(), before)
    for (name, buffer), (other_name, other) in zip(skeleton.named_buffers(), loaded.named_buffers(), strict=True):
        assert (name, buffer.dtype) == (other_name, other.dtype)
        assert torch.equal(buffer, other), name
    for (name, parameter), (_, other) in zip(skeleton.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(parameter, other), name
    inputs = tiny_inputs(model)
    with torch.no_grad():
        assert torch.equal(skeleton(**inputs).logits, loaded(**inputs).logits)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", {}),
        ("qwen2", {"lm_head.weight": "model.embed_tokens.weight"}),
        ("gpt2", {"lm_head.weight": "transformer.wte.weight"}),
        ("t5", {f"{n}.weight": "shared.weight" for n in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ties_are_seen_on_skeletons_and_live_models(family: str, expected: dict[str, str]) -> None:
    model = tiny_model(family)
    assert tied_aliases(model) == tied_aliases(build_skeleton(model.config)) == expected


def test_ties_of_any_module_are_seen() -> None:
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.ReLU(), shared)})
    assert tied_aliases(model) == {"b.1.weight": "a.weight", "b.1.bias": "a.bias"}


def test_a_tie_holds_whichever_name_was_loaded() -> None:
    model = tiny_model("qwen2")
    skeleton = filled(model)
    skeleton.model.embed_tokens.weight = nn.Parameter(torch.empty(128, 64, device="meta"))
    place(skeleton, "lm_head.weight", model.lm_head.weight.detach())
    materialize(skeleton)
    assert skeleton.model.embed_tokens.weight is skeleton.lm_head.weight


class Holder(nn.Module):
    """Stands in a parameter's place, as packed experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.arange(6, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("mixtral", "model.layers.0.mlp.experts.gate_up_proj"),
        ("gemma3", "model.embed_tokens.weight"),  # its module also owns a buffer to compute
        ("llama", "model.layers.1.self_attn.q_proj.weight"),
    ],
    ids=["experts", "embedding", "linear"],
)
def test_a_parameter_may_be_replaced_by_a_module(family: str, name: str) -> None:
    model = tiny_model(family, tie_word_embeddings=False)
    skeleton = filled(model)
    prefix, _, leaf = name.rpartition(".")
    delattr(skeleton.get_submodule(prefix), leaf)
    skeleton.get_submodule(prefix).add_module(leaf, Holder())
    materialize(skeleton)
    assert skeleton.get_submodule(name).codes.tolist() == list(range(6))
    assert torch.equal(
        skeleton.model.rotary_emb.get_buffer(_rotary(skeleton)), model.model.rotary_emb.get_buffer(_rotary(model))
    )


def _rotary(model: PreTrainedModel) -> str:
    return next(name for name, _ in model.model.rotary_emb.named_buffers())


def test_tensors_that_were_not_loaded_are_named() -> None:
    skeleton = filled(tiny_model("llama"))
    skeleton.model.norm.weight = nn.Parameter(torch.empty(64, device="meta"))
    skeleton.lm_head.weight = nn.Parameter(torch.empty(128, 64, device="meta"))
    with pytest.raises(CheckpointError, match=r"2 tensors .* model\.norm\.weight, lm_head\.weight"):
        materialize(skeleton)


def test_a_buffer_that_nobody_computes_is_named() -> None:
    skeleton = filled(tiny_model("llama"))
    skeleton.model.norm.register_buffer("mystery", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(CheckpointError, match=r"model\.norm\.mystery"):
        materialize(skeleton)


def test_optional_buffers_have_transformers_values() -> None:
    skeleton = build_skeleton(tiny_config("bart"))
    values = initial_buffers(skeleton, ["final_logits_bias"])
    assert torch.equal(values["final_logits_bias"], torch.zeros(1, 128))
    assert skeleton.final_logits_bias.is_meta


@pytest.mark.parametrize(
    ("named", "built"),
    [
        (["LlamaModel"], "LlamaModel"),
        (["LlamaForSequenceClassification"], "LlamaForSequenceClassification"),
        (["NoSuchClass"], "LlamaForCausalLM"),
        (["GPT2LMHeadModel"], "LlamaForCausalLM"),  # takes another config
        (["pipeline"], "LlamaForCausalLM"),  # no model at all
        (None, "LlamaForCausalLM"),
    ],
    ids=["base", "head", "unknown", "other-family", "function", "unset"],
)
def test_the_class_is_the_named_one_or_the_auto_class(named: list[str] | None, built: str) -> None:
    config = tiny_config("llama", architectures=named)
    assert type(build_skeleton(config)).__name__ == built


def test_an_encoder_decoder_without_architectures_is_found() -> None:
    assert type(build_skeleton(tiny_config("t5"))).__name__ == "T5ForConditionalGeneration"


def test_a_config_without_a_model_is_refused() -> None:
    from transformers import PreTrainedConfig

    with pytest.raises(SourceError, match="no model class for model_type"):
        build_skeleton(PreTrainedConfig(architectures=["Unheard"]))


def test_a_config_that_its_model_refuses_is_a_source_error() -> None:
    config = tiny_config("llama")
    config.hidden_act = "no such function"
    with pytest.raises(SourceError, match="LlamaForCausalLM cannot be built"):
        build_skeleton(config)


def test_the_callers_config_is_not_changed() -> None:
    config = LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, vocab_size=16)
    before = config.to_dict()
    build_skeleton(config)
    assert config.to_dict() == before


SAYS = {"own": {"tie_word_embeddings": False}, "tied": {"tie_word_embeddings": True}, "nothing": {}}
HELD = {"both": ("shared.weight", "lm_head.weight"), "one": ("shared.weight",), "neither": ()}


@pytest.mark.parametrize(("says", "held"), [(one, other) for one in SAYS for other in HELD])
def test_a_t5s_head_is_its_own_if_the_config_says_so_and_the_files_hold_one(says, held):
    """T5Config ties whatever it reads; FLAN-T5's config.json says what is so."""
    model = build_skeleton(tiny_config("t5"))
    untie_head(model, SAYS[says], HELD[held])
    own = (says, held) == ("own", "both")
    assert has_tied_head(model) != own
    assert ("lm_head.weight" in tied_aliases(model)) != own
    assert "encoder.embed_tokens.weight" in tied_aliases(model), "embeddings stay one"
    assert told_untied(model) == ({"tie_word_embeddings": False} if own else {})
