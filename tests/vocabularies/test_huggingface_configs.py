"""transformers' AwqConfig, GPTQConfig and BitsAndBytesConfig: no parameter is ignored.

For each parameter there is a value, and what the plan of a real model says for it that it does not say for the default;
or the words of the refusal or of the notice.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from plan_facts import ATTENTION, BLOCKS, MLP, facts, keeps
from tiny_models import tiny_model

import woqfx
from woqfx.errors import ConfigError
from woqfx.vocabularies import arguments_of
from woqfx.vocabularies.huggingface import AWQ, BITSANDBYTES, GPTQ

CLASSES = {AWQ.title: transformers.AwqConfig, GPTQ.title: transformers.GPTQConfig}


@dataclass(frozen=True)
class Old:
    """A configuration object of an older transformers: attributes, and a constructor with these parameters."""

    title: str
    values: dict[str, Any]

    def build(self) -> Any:
        name = self.title.rpartition(".")[2]
        made = type(name, (), {"__init__": lambda self, **values: vars(self).update(values)})
        return made(quant_method=name.removesuffix("Config").lower(), **self.values)


@pytest.fixture(scope="module")
def usual(model):
    """What a plan says for the defaults of each class."""
    return {
        AWQ.title: facts(model, transformers.AwqConfig()),
        GPTQ.title: facts(model, transformers.GPTQConfig(bits=4)),
    }


def scheme(field: str, value: Any):
    return lambda found: getattr(found["first"], field) == value


def option(name: str, value: Any):
    return lambda found: found["options"][name] == value


def tokens(found) -> list[list[int]]:
    subject = woqfx.Subject(woqfx.source.open_source(tiny_model("llama", vocab_size=259)), found["data"].tokenizer)
    return [ids.tolist() for ids in found["data"].data.documents(subject, found["data"])]


#: Parameter, value, and what the plan says then.
HONOURED = [
    (AWQ, "bits", 8, scheme("dtype", "int8")),
    (AWQ, "bits", 4, scheme("dtype", "int4_clip")),
    (AWQ, "bits", 3, scheme("dtype", "int3")),
    (AWQ, "bits", 2, scheme("dtype", "int2")),
    (AWQ, "group_size", 64, scheme("group_size", 64)),
    (AWQ, "group_size", -1, scheme("group_size", -1)),
    (AWQ, "zero_point", False, scheme("symmetric", True)),
    (AWQ, "modules_to_not_convert", ["o_proj"], keeps(*(name for name in ATTENTION if "o_proj" in name))),
    (AWQ, "modules_to_not_convert", ["model.layers.0"], keeps(*(n for n in ATTENTION + MLP if "layers.0" in n))),
    (AWQ, "modules_to_not_convert", [r"layers\.\d+\.mlp"], keeps(*MLP)),
    (AWQ, "tokenizer", "somewhere", lambda found: found["data"].tokenizer == "somewhere"),
    (AWQ, "dataset", ["some text"], lambda found: found["data"].data.texts == ("some text",)),
    (AWQ, "model_seqlen", 64, lambda found: found["data"].seq_len == 64),
    (GPTQ, "bits", 8, scheme("dtype", "int8")),
    (GPTQ, "bits", 4, scheme("dtype", "int4_fullrange")),
    (GPTQ, "bits", 3, scheme("dtype", "int3")),
    (GPTQ, "bits", 2, scheme("dtype", "int2")),
    (GPTQ, "tokenizer", "somewhere", lambda found: found["data"].tokenizer == "somewhere"),
    (GPTQ, "dataset", "wikitext2", lambda found: found["data"].data == "wikitext2"),
    (GPTQ, "dataset", "c4", lambda found: found["data"].data == "c4"),
    (GPTQ, "dataset", "c4-new", lambda found: found["data"].data == "c4-new"),
    (GPTQ, "dataset", ["one text", "two"], lambda found: found["data"].samples == 2),
    (GPTQ, "group_size", 32, scheme("group_size", 32)),
    (GPTQ, "damp_percent", 0.25, option("damp_percent", 0.25)),
    (GPTQ, "desc_act", True, option("desc_act", True)),
    (GPTQ, "act_group_aware", False, option("act_group_aware", False)),
    (GPTQ, "sym", False, scheme("symmetric", False)),
    (GPTQ, "true_sequential", False, option("true_sequential", False)),
    (GPTQ, "model_seqlen", 64, lambda found: found["data"].seq_len == 64),
]

#: What a plan of an older object, or a dictionary, says.
OLD = [
    (GPTQ, {"bits": 4, "dataset": "ptb"}, lambda found: found["data"].data == "ptb"),
    (GPTQ, {"bits": 4, "dataset": "ptb-new"}, lambda found: found["data"].data == "ptb-new"),
    (
        GPTQ,
        {"bits": 4, "modules_in_block_to_quantize": [["self_attn.q_proj", "self_attn.k_proj"], ["mlp.up_proj"]]},
        lambda found: (
            found["schemes"].keys()
            == {b + n for b in BLOCKS for n in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")}
        ),
    ),
    (
        GPTQ,
        {
            "bits": 4,
            "modules_in_block_to_quantize": [["mlp.up_proj"]],
            "block_name_to_quantize": "model.layers",
        },
        lambda found: found["schemes"].keys() == {block + "mlp.up_proj" for block in BLOCKS},
    ),
]

#: Accepted, with a notice that names the parameter.
WITHOUT_EFFECT = [
    (AWQ, "version", "gemv_fast"),
    (AWQ, "format", "llm-awq"),
    (AWQ, "backend", "marlin"),
    (AWQ, "fuse_max_seq_len", 512),
    (AWQ, "modules_to_fuse", {"attention": ["q_proj"]}),
    (AWQ, "exllama_config", {"version": 1}),
    (AWQ, "meta", {"quantizer": "x"}),
    (AWQ, "max_input_length", 2048),
    (GPTQ, "use_cuda_fp16", True),
    (GPTQ, "module_name_preceding_first_block", ["model.embed_tokens"]),
    (GPTQ, "batch_size", 4),
    (GPTQ, "pad_token_id", 0),
    (GPTQ, "use_exllama", True),
    (GPTQ, "disable_exllama", False),
    (GPTQ, "max_input_length", 2048),
    (GPTQ, "exllama_config", {"version": 2}),
    (GPTQ, "cache_block_outputs", False),
    (GPTQ, "format", "gptq_v2"),
    (GPTQ, "checkpoint_format", "gptq_v2"),
    (GPTQ, "meta", {"quantizer": "x"}),
    (GPTQ, "backend", "marlin"),
    (BITSANDBYTES, "llm_int8_enable_fp32_cpu_offload", True),
    (BITSANDBYTES, "bnb_4bit_quant_storage", "bfloat16"),
]

#: Refused, for this reason.
REFUSED = [
    (AWQ, "bits", 5, "one of 2, 3, 4, 8"),
    (AWQ, "group_size", 0, "makes no groups"),
    (AWQ, "zero_point", "yes", "True or False"),
    (AWQ, "version", "gemx", "one of 'gemm'"),
    (AWQ, "do_fuse", True, "needs fuse_max_seq_len"),
    (AWQ, "modules_to_not_convert", "o_proj", "a list of module names"),
    (AWQ, "modules_to_not_convert", ["("], "regular expression"),
    (AWQ, "dataset", "pile", "one of wikitext2"),
    (AWQ, "damp_percent", 0.2, "AWQ has nothing like it"),
    (AWQ, "desc_act", True, "AWQ has nothing like it"),
    (AWQ, "act_group_aware", False, "AWQ has nothing like it"),
    (AWQ, "true_sequential", False, "AWQ has nothing like it"),
    (AWQ, "sym", False, "zero_point"),
    (AWQ, "block_name_to_quantize", "model.layers", "AWQ has nothing like it"),
    (AWQ, "module_name_preceding_first_block", ["x"], "AWQ has nothing like it"),
    (AWQ, "batch_size", 2, "AWQ has nothing like it"),
    (AWQ, "pad_token_id", 1, "AWQ has nothing like it"),
    (AWQ, "cache_block_outputs", False, "AWQ has nothing like it"),
    (AWQ, "modules_in_block_to_quantize", [["x"]], "AWQ has nothing like it"),
    (GPTQ, "bits", 5, "one of 2, 3, 4, 8"),
    (GPTQ, "dataset", [], "texts, or token ids"),
    (GPTQ, "dataset", [3.5], "item 1"),
    (GPTQ, "dataset", 7, "a list of texts"),
    (GPTQ, "damp_percent", "much", "takes float"),
    (GPTQ, "block_name_to_quantize", 3, "the name of a module"),
    (GPTQ, "modules_in_block_to_quantize", "q_proj", "a list of lists"),
    (GPTQ, "exlama", True, "no such parameter"),
    (BITSANDBYTES, "load_in_4bit", False, "nothing is to be quantized"),
    (BITSANDBYTES, "load_in_8bit", True, "load_in_4bit is True as well"),
    (BITSANDBYTES, "llm_int8_has_fp16_weight", True, "packed weights alone"),
    (BITSANDBYTES, "bnb_4bit_compute_dtype", "float16", "ask for float32 or bfloat16"),
    (BITSANDBYTES, "bnb_4bit_quant_type", "int4", "one of 'fp4', 'nf4'"),
    (BITSANDBYTES, "llm_int8_skip_modules", "head", "a list of module names"),
]


def named(cases):
    return [f"{case[0].title.removeprefix('transformers.')}-{case[1]}-{case[2]}"[:70] for case in cases]


def said(vocabulary, name, value) -> dict[str, Any]:
    usual = {GPTQ.title: {"bits": 4}, BITSANDBYTES.title: {"load_in_4bit": True}}.get(vocabulary.title, {})
    method = vocabulary.title.removeprefix("transformers.").removesuffix("Config").lower()
    return {"quant_method": method, **usual, name: value}


@pytest.mark.parametrize("case", HONOURED, ids=named(HONOURED))
def test_the_plan_follows_a_parameter(model, usual, case):
    vocabulary, name, value, holds = case
    build = CLASSES[vocabulary.title]
    needed = {"bits": 4} if vocabulary is GPTQ and name != "bits" else {}
    assert holds(facts(model, build(**needed, **{name: value})))
    if value != vocabulary.default(name) and not (name == "bits" and value == 4):
        with contextlib.suppress(AttributeError, KeyError):
            assert not holds(usual[vocabulary.title]), "it holds for the default too, so the test shows nothing"


@pytest.mark.parametrize("case", OLD, ids=[str(case[1])[:70] for case in OLD])
@pytest.mark.parametrize("form", ["object", "dictionary"])
def test_objects_of_older_versions_and_dictionaries(model, case, form):
    vocabulary, values, holds = case
    config = Old(vocabulary.title, values).build() if form == "object" else {"quant_method": "gptq", **values}
    assert holds(facts(model, config))


@pytest.mark.parametrize("case", WITHOUT_EFFECT, ids=named(WITHOUT_EFFECT))
def test_what_has_no_effect_is_told(case):
    vocabulary, name, value = case
    usual = {key: held for key, held in said(vocabulary, name, value).items() if key != name}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = arguments_of(usual)
    with pytest.warns(UserWarning, match=f"{name}=.* has no effect: "):
        assert arguments_of(said(vocabulary, name, value)) == expected


@pytest.mark.parametrize("case", REFUSED, ids=named(REFUSED))
def test_what_cannot_be_honoured_is_refused(case):
    vocabulary, name, value, reason = case
    with pytest.raises(ConfigError, match=f"{name}") as error:
        arguments_of(said(vocabulary, name, value))
    assert any(reason in problem for problem in error.value.problems)


def test_fusing_is_a_matter_of_speed():
    with (
        pytest.warns(UserWarning, match=r"fuse_max_seq_len=512 has no effect"),
        pytest.warns(UserWarning, match=r"do_fuse=True has no effect.*llm_runtime"),
    ):
        arguments_of({"quant_method": "awq", "do_fuse": True, "fuse_max_seq_len": 512})


def test_desc_act_switches_group_awareness_off_as_in_transformers():
    found = arguments_of({"quant_method": "gptq", "bits": 4, "desc_act": True, "act_group_aware": True})
    assert found["options"]["act_group_aware"] is False


def test_texts_are_not_packed(model):
    config = transformers.GPTQConfig(bits=4, dataset=["ab", "abc" * 400], tokenizer=str(model), model_seqlen=64)
    found = facts(model, config)
    assert [len(ids) for ids in tokens(found)] == [2, 64]


def test_one_row_of_blocks_alone():
    config = {"quant_method": "gptq", "bits": 4, "block_name_to_quantize": "encoder.block"}
    plan = woqfx.plan(tiny_model("t5"), config=config)
    quantized = {layer.layer.name for layer in plan.layers if layer.scheme is not None}
    assert quantized == {
        layer.layer.name
        for layer in plan.layers
        if layer.layer.name.startswith("encoder.block.") and "_bias" not in layer.layer.name
    }


def test_token_ids_with_masks_are_calibration_data(model):
    batch = {"input_ids": torch.tensor([[5, 6, 7, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    found = facts(model, transformers.GPTQConfig(bits=4, dataset=[batch, batch]))
    assert [ids.tolist() for ids in found["data"].data] == [[5, 6, 7]] * 2


def test_every_parameter_has_a_case():
    cases = {(case[0].title, case[1]) for case in (*HONOURED, *WITHOUT_EFFECT, *REFUSED)}
    cases |= {(vocabulary.title, name) for vocabulary, values, _ in OLD for name in values}
    cases |= {(BITSANDBYTES.title, name) for name in ("llm_int8_threshold", "bnb_4bit_use_double_quant")}
    cases |= {(GPTQ.title, "block_name_to_quantize")}
    for vocabulary in (AWQ, GPTQ, BITSANDBYTES):
        assert {name for title, name in cases if title == vocabulary.title} >= {
            parameter.name for parameter in vocabulary.parameters
        }


@pytest.mark.parametrize("cls", [transformers.AwqConfig, transformers.GPTQConfig, transformers.BitsAndBytesConfig])
def test_every_parameter_of_the_installed_transformers_is_known(cls):
    import inspect

    vocabulary = {"AwqConfig": AWQ, "GPTQConfig": GPTQ, "BitsAndBytesConfig": BITSANDBYTES}[cls.__name__]
    parameters = set(inspect.signature(cls).parameters) - {"kwargs"}
    assert parameters <= {parameter.name for parameter in vocabulary.parameters}


def test_a_class_in_place_of_an_object():
    with pytest.raises(ConfigError, match=r"this is the class: give an object, GPTQConfig\(\.\.\.\)"):
        arguments_of(transformers.GPTQConfig)


@pytest.mark.parametrize(
    "config", [7, {"quant_method": "hqq"}, {}, object()], ids=["number", "unknown method", "empty", "object"]
)
def test_what_is_no_configuration_that_is_known(config):
    with pytest.raises(ConfigError):
        arguments_of(config)
