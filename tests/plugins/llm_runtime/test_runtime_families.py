"""Families: a description computes what transformers' model computes, and what it cannot express is refused."""

from __future__ import annotations

import pytest
import torch
from plain_engine import PlainEngine, dense_weights
from runtime_models import CASES, FAMILIES, given
from tiny_models import tiny_config, tiny_model

from woqfx.skeleton import build_skeleton
from woqfx_llm_runtime.families import _KNOWN, NAMES, family_of
from woqfx_llm_runtime.families.fields import Fields, UnsupportedModelError

LONG = 40  # beyond every small window, and beyond the 32 positions of the tiny longrope


def described(model):
    family = family_of(model)
    assert family is not None
    return family(model)


def tokens_of(model, length):
    return torch.randint(3, model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("case", CASES)
def test_a_description_computes_what_the_model_computes(case):
    family, changes = CASES[case]
    model = tiny_model(family, **changes)
    engine = PlainEngine(described(model), dense_weights(model))
    for length in (1, 9, LONG):
        tokens, slot = tokens_of(model, length), engine.create()
        inputs = given(model, tokens[None])
        if "decoder_input_ids" in inputs:
            engine.encode([slot], [inputs["input_ids"].shape[1]], inputs["input_ids"][0])
        found = torch.empty(length, engine.vocab_size)
        engine.forward([slot], [length], [length], tokens, found)
        with torch.no_grad():
            wanted = model(**inputs, use_cache=False).logits[0]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_the_config_is_honoured_or_harmless(family):
    """So that a field which a later transformers adds shows here."""
    skeleton = build_skeleton(tiny_config(family))
    fields = Fields(skeleton.config)
    _KNOWN[type(skeleton).__name__](fields, skeleton)
    fields.finish()
    assert fields.overlooked() == set()


def test_every_known_class_has_a_case():
    assert {type(build_skeleton(tiny_config(family))).__name__ for family in FAMILIES} == set(NAMES)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"hidden_act": "mish"}, "hidden_act 'mish' is not one of silu"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma3", {"attn_logit_softcapping": 20.0}, "attn_logit_softcapping is 20.0"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before is False"),
        ("opt", {"word_embed_proj_dim": 32}, "word_embed_proj_dim is 32"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("llama", {"is_causal": False}, "is_causal is False"),
        ("granite", {"logits_scaling": 0.0}, "logits_scaling is 0"),
        ("t5", {"feed_forward_proj": "gated-mish"}, "dense_act_fn 'mish' is not one of silu"),
        ("t5", {"relative_attention_num_buckets": 2}, "relative_attention_num_buckets 2 and .* 4 to 4096 buckets"),
        ("umt5", {"relative_attention_max_distance": 16}, "relative_attention_max_distance 16"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_what_the_runtime_does_not_know_is_refused(family, changes, message):
    with pytest.raises(UnsupportedModelError, match=message):
        described(build_skeleton(tiny_config(family, **changes)))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rope_parameters", {"rope_type": "spiral", "rope_theta": 1e4}, "rope_type 'spiral' is not one of default"),
        ("rope_parameters", None, "rope_type None"),
        ("num_attention_heads", 0, "num_attention_heads is 0, not a positive whole number"),
        ("num_key_value_heads", 3, "not a multiple of num_key_value_heads 3"),
        ("head_dim", 10**30, "head_dim 1000000000000000000000000000000 is not an even number up to"),
        ("head_dim", "16", "head_dim is '16'"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps is nan"),
        ("max_position_embeddings", -1, "max_position_embeddings is -1"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_numbers_of_a_config_that_make_no_sense_are_refused(name, value, message):
    skeleton = build_skeleton(tiny_config("llama"))
    object.__setattr__(skeleton.config, name, value)
    with pytest.raises(UnsupportedModelError, match=message):
        described(skeleton)


def test_a_field_that_no_family_reads_is_refused_unless_at_rest():
    skeleton = build_skeleton(tiny_config("qwen3_moe"))
    fields = Fields(skeleton.config)
    with pytest.raises(UnsupportedModelError, match="num_experts_per_tok is 2, which the runtime does not know"):
        fields.finish()


def test_a_subclass_is_another_model():
    model = build_skeleton(tiny_config("llama"))
    model.__class__ = type("LlamaForCausalLM", (type(model),), {})
    assert family_of(model) is None
    assert family_of(torch.nn.Linear(2, 2)) is None
    assert family_of(build_skeleton(tiny_config("bloom"))) is None
