"""transformers' BitsAndBytesConfig: two kinds of quantization in one class."""

from __future__ import annotations

import pytest
import torch
import transformers
from plan_facts import MLP, facts, keeps

from woqfx.vocabularies import arguments_of


def bitsandbytes(**values):
    return transformers.BitsAndBytesConfig(**values)


def test_eight_bits_are_llm_int8(model):
    found = facts(model, bitsandbytes(load_in_8bit=True))["first"]
    assert (found.dtype, found.group_size, found.symmetric, found.scale_dtype) == ("int8", -1, True, "fp32")
    assert (found.compute_dtype, found.outlier_threshold) == ("int8", 6.0)


@pytest.mark.parametrize("threshold", [0.0, 3.5])
def test_the_threshold(model, threshold):
    config = bitsandbytes(load_in_8bit=True, llm_int8_threshold=threshold)
    assert facts(model, config)["first"].outlier_threshold == threshold


@pytest.mark.parametrize("kind", ["load_in_8bit", "load_in_4bit"])
def test_skipped_modules(model, kind):
    config = bitsandbytes(**{kind: True}, llm_int8_skip_modules=["down_proj", "lm_head"])
    assert keeps(*(name for name in MLP if "down" in name))(facts(model, config))


@pytest.mark.parametrize(("kind", "dtype"), [("nf4", "nf4"), ("fp4", "fp4_bnb")])
def test_four_bits(model, kind, dtype):
    found = facts(model, bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type=kind))["first"]
    assert (found.dtype, found.group_size, found.scale_dtype) == (dtype, 64, "fp32")
    assert (found.compute_dtype, found.double_quant) == ("fp32", False)


def test_double_quantization(model):
    assert facts(model, bitsandbytes(load_in_4bit=True, bnb_4bit_use_double_quant=True))["first"].double_quant


@pytest.mark.parametrize(("given", "name"), [(torch.bfloat16, "bf16"), ("float32", "fp32"), (None, "fp32")], ids=str)
def test_the_compute_dtype(model, given, name):
    config = bitsandbytes(load_in_4bit=True, bnb_4bit_compute_dtype=given)
    assert facts(model, config)["first"].compute_dtype == name


def test_what_its_file_says_is_understood(model):
    config = bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    assert facts(model, config.to_dict())["schemes"] == facts(model, config)["schemes"]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("load_in_4bit", {"llm_int8_threshold": 3.0}),
        ("load_in_8bit", {"bnb_4bit_quant_type": "nf4"}),
        ("load_in_8bit", {"bnb_4bit_use_double_quant": True}),
        ("load_in_8bit", {"bnb_4bit_compute_dtype": torch.bfloat16}),
    ],
    ids=str,
)
def test_what_is_about_the_other_kind_is_told(kind, values):
    with pytest.warns(UserWarning, match=f"{next(iter(values))}=.* has no effect: it is about load_in_"):
        arguments_of(bitsandbytes(**{kind: True}, **values))
