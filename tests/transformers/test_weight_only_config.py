"""`WeightOnlyQuantConfig` and the classes of the original's version 1.4: names, values, defaults, and no rewriting."""

from __future__ import annotations

import copy
import inspect
import json
import pickle

import pytest
import torch
from tiny_models import tiny_model

import woqfx
from woqfx.errors import ConfigError
from woqfx.transformers import (
    AutoRoundConfig,
    AwqConfig,
    CheckpointConfig,
    GPTQConfig,
    RtnConfig,
    TeqConfig,
    WeightOnlyQuantConfig,
    WoqfxConfig,
)
from woqfx.vocabularies import arguments_of
from woqfx.vocabularies.itrex import AUTOROUND_14, AWQ_14, GPTQ_14, RTN_14, TEQ_14, WEIGHT_ONLY

CLASSES = {
    WEIGHT_ONLY.title: WeightOnlyQuantConfig,
    RTN_14.title: RtnConfig,
    AWQ_14.title: AwqConfig,
    TEQ_14.title: TeqConfig,
    GPTQ_14.title: GPTQConfig,
    AUTOROUND_14.title: AutoRoundConfig,
}
BATCHES = [{"input_ids": torch.tensor([[5, 6, 7]])}, {"input_ids": torch.tensor([[8, 9, 10]])}]

GPTQ_OPTIONS = {
    "blocksize": 128,
    "damp_percent": 0.1,
    "desc_act": False,
    "static_groups": False,
    "true_sequential": False,
}

#: Class, parameters, and arguments of `woqfx.quantize` that they must become.
HONOURED = [
    (WeightOnlyQuantConfig, {}, {"dtype": "nf4", "group_size": 32, "symmetric": True, "algorithm": "rtn"}),
    (WeightOnlyQuantConfig, {}, {"compute_dtype": "fp32", "scale_dtype": "fp32", "double_quant": False}),
    *((WeightOnlyQuantConfig, {"weight_dtype": name}, {"dtype": name}) for name in ("int8", "int4_clip", "nf4")),
    (WeightOnlyQuantConfig, {"weight_dtype": "int4_fullrange"}, {"dtype": "int4_fullrange"}),
    (WeightOnlyQuantConfig, {"weight_dtype": "fp4_e2m1"}, {"dtype": "fp4_e2m1"}),
    (WeightOnlyQuantConfig, {"weight_dtype": "fp4_e2m1_bnb"}, {"dtype": "fp4_bnb"}),
    (WeightOnlyQuantConfig, {"weight_dtype": "int4"}, {"dtype": "int4_clip"}),
    (WeightOnlyQuantConfig, {"compute_dtype": "int8"}, {"dtype": "nf4", "compute_dtype": "int8"}),
    (WeightOnlyQuantConfig, {"compute_dtype": torch.bfloat16}, {"compute_dtype": "bf16"}),
    (WeightOnlyQuantConfig, {"scale_dtype": "bf16"}, {"scale_dtype": "bf16"}),
    (WeightOnlyQuantConfig, {"group_size": -1}, {"group_size": -1}),
    (WeightOnlyQuantConfig, {"scheme": "asym", "weight_dtype": "int8", "compute_dtype": "int8"}, {"symmetric": False}),
    *((WeightOnlyQuantConfig, {"algorithm": name}, {"algorithm": name.lower()}) for name in ("AWQ", "TEQ", "GPTQ")),
    (WeightOnlyQuantConfig, {"algorithm": "awq+gptq"}, {"algorithm": "awq+gptq"}),
    (
        WeightOnlyQuantConfig,
        {
            "algorithm": "GPTQ",
            "algorithm_args": {"act_order": True, "percdamp": 0.2, "nsamples": 7, "pad_max_length": 64},
        },
        {"options": {"desc_act": True, "damp_percent": 0.2}, "samples": 7, "seq_len": 64},
    ),
    (WeightOnlyQuantConfig, {"mse_range": True}, {"options": {"mse_range": True}}),
    (WeightOnlyQuantConfig, {"mse_range": False, "algorithm": "AWQ"}, {"options": {"clip": False}}),
    (WeightOnlyQuantConfig, {"use_double_quant": True}, {"double_quant": True}),
    (WeightOnlyQuantConfig, {"double_quant_scale_dtype": "fp32"}, {}),
    (
        WeightOnlyQuantConfig,
        {"llm_int8_skip_modules": ["q_proj"]},
        {"rules": [(r"re:(?:.*\.)?q_proj(?:\..*)?", "keep")]},
    ),
    (WeightOnlyQuantConfig, {"tokenizer": "folder"}, {"tokenizer": "folder"}),
    (WeightOnlyQuantConfig, {"calib_dataset": "NeelNanda/pile-10k"}, {"calibration": "NeelNanda/pile-10k"}),
    (WeightOnlyQuantConfig, {"calib_iters": 9}, {"samples": 9}),
    (WeightOnlyQuantConfig, {"calib_dataloader": BATCHES}, {"samples": 2}),
    (WeightOnlyQuantConfig, {"calib_dataloader": BATCHES, "calib_iters": 1}, {"samples": 1}),
    (WeightOnlyQuantConfig, {"backend": "torch_cpu"}, {"backend": "torch_cpu"}),
    (WeightOnlyQuantConfig, {"use_neural_speed": False}, {"backend": "torch_cpu"}),
    (WeightOnlyQuantConfig, {"device": "cpu"}, {}),
    (RtnConfig, {}, {"algorithm": "rtn", "dtype": "int4_clip", "group_size": 32, "symmetric": True}),
    (RtnConfig, {"bits": 8}, {"dtype": "int8"}),
    (RtnConfig, {"weight_dtype": "int8"}, {"dtype": "int8"}),
    (RtnConfig, {"bits": 4, "weight_dtype": "nf4"}, {"dtype": "nf4"}),
    (RtnConfig, {"sym": False}, {"symmetric": False}),
    (RtnConfig, {"mse_range": True}, {"options": {"mse_range": True}}),
    (AwqConfig, {}, {"algorithm": "awq", "dtype": "int8", "group_size": 32, "symmetric": False}),
    (AwqConfig, {"bits": 4, "zero_point": False}, {"dtype": "int4_clip", "symmetric": True}),
    (AwqConfig, {"dataset": "c4"}, {"calibration": "c4"}),
    (TeqConfig, {"bits": 4}, {"algorithm": "teq", "dtype": "int4_clip", "symmetric": True}),
    (GPTQConfig, {}, {"algorithm": "gptq", "dtype": "int4_clip", "samples": 100}),
    *(
        (GPTQConfig, {name: value}, {"options": GPTQ_OPTIONS | {name: value}})
        for name, value in {
            "blocksize": 64,
            "damp_percent": 0.2,
            "desc_act": True,
            "static_groups": True,
            "true_sequential": True,
        }.items()
    ),
    (GPTQConfig, {"nsamples": 12, "max_input_length": 99}, {"samples": 12, "seq_len": 99}),
    (AutoRoundConfig, {}, {"algorithm": "best", "symmetric": False, "samples": 512, "seq_len": 2048}),
    (AutoRoundConfig, {"iters": 3}, {"options": {"iterations": 3}}),
    (AutoRoundConfig, {"enable_quanted_input": False}, {"propagate": "float"}),
]

#: Class, parameters, and what is wrong with them.
REFUSED = [
    (WeightOnlyQuantConfig, {"weight_dtype": "fp8_e4m3"}, "an 8-bit float has no form here"),
    (WeightOnlyQuantConfig, {"weight_dtype": "nf5"}, "no such dtype; there are"),
    (WeightOnlyQuantConfig, {"weight_dtype": 4}, "the name of a dtype"),
    (WeightOnlyQuantConfig, {"compute_dtype": "fp16"}, "ask for float32 or bfloat16"),
    (WeightOnlyQuantConfig, {"compute_dtype": "fp12"}, "'fp12'"),
    (WeightOnlyQuantConfig, {"scale_dtype": "fp8_e8m0"}, "use_double_quant=True"),
    (WeightOnlyQuantConfig, {"group_size": 0}, "makes no groups"),
    (WeightOnlyQuantConfig, {"scheme": "asymmetric"}, "one of 'sym', 'asym'"),
    (WeightOnlyQuantConfig, {"scheme": "asym"}, "nf4 has no asymmetric form"),
    (WeightOnlyQuantConfig, {"algorithm": "LSQ"}, "no algorithm 'lsq'"),
    (WeightOnlyQuantConfig, {"algorithm": None}, "the name of an algorithm"),
    (WeightOnlyQuantConfig, {"algorithm_args": ["x"]}, "a dictionary"),
    (WeightOnlyQuantConfig, {"algorithm": "AWQ", "algorithm_args": {"grids": 3}}, "'grids'"),
    (WeightOnlyQuantConfig, {"algorithm": "GPTQ", "mse_range": True}, "decides on clipping itself"),
    (WeightOnlyQuantConfig, {"use_double_quant": "yes"}, "double_quant must be true or false"),
    (WeightOnlyQuantConfig, {"double_quant_scale_dtype": "fp16"}, "ranges of double-quantized scales are fp32"),
    (WeightOnlyQuantConfig, {"llm_int8_skip_modules": "lm_head"}, "a list of module names"),
    (WeightOnlyQuantConfig, {"calib_func": print}, "woqfx runs the model itself"),
    (WeightOnlyQuantConfig, {"calib_iters": 0}, "samples must be a whole number from 1"),
    (WeightOnlyQuantConfig, {"calib_dataloader": 5}, "calib_dataloader=5"),
    (WeightOnlyQuantConfig, {"calib_dataloader": iter(BATCHES)}, "only once"),
    (WeightOnlyQuantConfig, {"calib_dataloader": BATCHES, "calib_dataset": "c4"}, "calib_dataloader is given as well"),
    (WeightOnlyQuantConfig, {"backend": "cuda"}, "'cuda'"),
    (WeightOnlyQuantConfig, {"backend": "torch_cpu", "use_neural_speed": True}, "says otherwise"),
    (WeightOnlyQuantConfig, {"use_ggml": True}, "woqfx's own"),
    (WeightOnlyQuantConfig, {"use_ipex": True}, "woqfx's own"),
    (WeightOnlyQuantConfig, {"use_quant": False}, "nothing to do"),
    (WeightOnlyQuantConfig, {"use_gptq": True}, r"woqfx\.load"),
    (WeightOnlyQuantConfig, {"use_autoround": True}, r"woqfx\.load"),
    (WeightOnlyQuantConfig, {"low_bit_model": True}, r"woqfx\.load"),
    (WeightOnlyQuantConfig, {"device": "xpu"}, "runs on the CPU"),
    (WeightOnlyQuantConfig, {"wieght_dtype": "nf4"}, "wieght_dtype: no such parameter; there are .*weight_dtype"),
    (RtnConfig, {"bits": 8, "weight_dtype": "int4_clip"}, "weight_dtype='int4_clip' has 4"),
    (RtnConfig, {"bits": 5}, "one of 4, 8"),
    (RtnConfig, {"use_quant": False}, "nothing to do"),
    (AwqConfig, {"zero_point": 1}, "True or False"),
    (GPTQConfig, {"damp_percent": "x"}, "takes float"),
    (AutoRoundConfig, {"lr": 0.1}, "a rate of its own"),
    (AutoRoundConfig, {"minmax_lr": 0.1}, "a rate of its own"),
]


def ids(cases):
    """The same in every process: an object's own words may hold its address."""
    return [
        f"{cls.__name__} {' '.join(f'{name}={_word(value)}' for name, value in given.items())}"[:80]
        for cls, given, _ in cases
    ]


def _word(value):
    return type(value).__name__ if " at 0x" in str(value) or callable(value) else value


@pytest.mark.parametrize(("cls", "given", "expected"), HONOURED, ids=ids(HONOURED))
def test_a_parameter_becomes_an_argument(cls, given, expected):
    found = cls(**given).arguments()
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(("cls", "given", "reason"), REFUSED, ids=ids(REFUSED))
def test_what_cannot_be_honoured_is_refused_at_construction(cls, given, reason):
    with pytest.raises(ConfigError, match=reason):
        cls(**given)


def test_the_plan_of_a_model_follows():
    config = WeightOnlyQuantConfig(weight_dtype="int8", scheme="asym", group_size=16, llm_int8_skip_modules=["mlp"])
    plan = woqfx.plan(tiny_model("llama"), config=config)
    assert {layer.name.split(".")[3] for layer in (one.layer for one in plan.quantized.values())} == {"self_attn"}
    (scheme,) = {one.scheme for one in plan.quantized.values()}
    assert (scheme.dtype, scheme.symmetric, scheme.group_size, scheme.scale_dtype) == ("int8", False, 16, "fp32")


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        WeightOnlyQuantConfig(weight_dtype="int9", group_size=0, scheme="both", algorithm="LSQ", calib_func=print)
    assert len(error.value.problems) == 5


def test_layers_are_always_gone_through_one_by_one():
    with pytest.warns(UserWarning, match="layer_wise=True has no effect"):
        RtnConfig(layer_wise=True)


def test_the_first_batches_of_a_loader():
    loader = torch.utils.data.DataLoader(torch.arange(40).view(10, 4), batch_size=2)
    found = WeightOnlyQuantConfig(calib_dataloader=loader, calib_iters=3).arguments()
    assert [ids.tolist() for ids in found["calibration"]] == torch.arange(24).view(6, 4).tolist()
    assert found["samples"] == 6


def test_every_parameter_has_a_case():
    cases = {(cls, name) for cls, given, _ in (*HONOURED, *REFUSED) for name in given} | {(RtnConfig, "layer_wise")}
    shared = {name for cls, name in cases if cls is WeightOnlyQuantConfig}
    for vocabulary in (WEIGHT_ONLY, RTN_14, AWQ_14, TEQ_14, GPTQ_14, AUTOROUND_14):
        named = {name for cls, name in cases if cls is CLASSES[vocabulary.title]}
        rest = {parameter.name for parameter in vocabulary.parameters} - named - shared
        # Parameters of one reader in several classes have their case in one of them.
        assert rest <= {"sym", "dataset", "mse_range", "bits", "layer_wise", "nsamples", "calib_len"}


class TestClasses:
    @pytest.mark.parametrize("cls", CLASSES.values(), ids=lambda cls: cls.__name__)
    def test_the_signature_shows_names_and_defaults(self, cls):
        parameters = inspect.signature(cls).parameters
        assert parameters["group_size"].default == 32
        assert cls().group_size == 32

    @pytest.mark.parametrize("cls", [*CLASSES.values(), WoqfxConfig], ids=lambda cls: cls.__name__)
    def test_dictionaries_and_json_and_copies_go_round(self, cls):
        made = cls(group_size=64)
        assert cls.from_dict(json.loads(made.to_json_string())) == made
        assert CheckpointConfig.from_dict(json.loads(made.to_json_string(use_diff=False))) == made
        assert copy.deepcopy(made) == made == pickle.loads(pickle.dumps(made))
        assert hash(made) == hash(cls(group_size=64))
        assert made != cls()

    def test_configurations_of_other_libraries_translate(self):
        import transformers

        theirs = transformers.AwqConfig(group_size=64, modules_to_not_convert=["o_proj"])
        made = WoqfxConfig.of(theirs)
        assert made.arguments() == arguments_of(theirs)
        again = CheckpointConfig.from_dict(json.loads(made.to_json_string()))
        schemes = [
            [layer.scheme for layer in woqfx.plan(tiny_model("llama"), config=one).layers]
            for one in (theirs, made, again)
        ]
        assert schemes[0] == schemes[1] == schemes[2]

    def test_the_json_of_a_difference_is_short(self):
        said = json.loads(WeightOnlyQuantConfig(weight_dtype="int8").to_json_string())
        assert said == {"quant_method": "woqfx", "config": "WeightOnlyQuantConfig", "weight_dtype": "int8"}
        assert repr(WeightOnlyQuantConfig(weight_dtype="int8")) == "WeightOnlyQuantConfig(weight_dtype='int8')"

    def test_objects_in_json_are_words_that_cannot_be_mistaken_for_data(self):
        loader = torch.utils.data.DataLoader(torch.arange(40).view(10, 4))
        json.dumps(WeightOnlyQuantConfig(calib_dataloader=loader, tokenizer=loader).to_dict())
        with pytest.raises(ConfigError, match="calib_dataloader"):
            WeightOnlyQuantConfig.from_dict(WeightOnlyQuantConfig(calib_dataloader=loader).to_dict())

    def test_a_changed_attribute_counts_and_is_checked(self):
        made = WeightOnlyQuantConfig()
        made.group_size = 128
        assert made.arguments()["group_size"] == 128
        made.group_size = 0
        with pytest.raises(ConfigError):
            made.arguments()

    def test_the_dictionary_of_another_class_is_refused(self):
        with pytest.raises(ConfigError, match="the dictionary is of a RtnConfig"):
            AwqConfig.from_dict(RtnConfig().to_dict())
        with pytest.raises(ConfigError, match="there is no such class"):
            CheckpointConfig.from_dict({"quant_method": "woqfx", "config": "os.system"})


class TestTheOriginalsOwn:
    """Objects and dictionaries of the original itself, which cannot be installed beside today's transformers."""

    def test_the_file_that_it_wrote(self):
        # quantize_config.json of version 1.4.2, after GPTQ.
        file = {
            "bits": 4,
            "compute_dtype": "fp32",
            "damp_percent": 0.1,
            "desc_act": True,
            "group_size": 128,
            "llm_int8_skip_modules": ["lm_head"],
            "quant_method": "gptq",
            "scale_dtype": "fp32",
            "sym": True,
            "true_sequential": False,
            "use_ipex": False,
            "weight_dtype": "int4_clip",
        }
        found = arguments_of(file)
        assert (found["algorithm"], found["dtype"], found["scale_dtype"]) == ("gptq", "int4_clip", "fp32")
        assert found["options"]["desc_act"] is True

    @pytest.mark.parametrize("title", CLASSES, ids=str)
    def test_an_object_by_its_class_and_attributes(self, title):
        made = CLASSES[title]()
        stranger = type(title, (), {"__init__": lambda self, group_size=32: None})()
        vars(stranger).update(vars(made) | {"group_size": 64, "weight_dtype": "nf4", "_internal_of_a_base": 3})
        vars(stranger)["bits"] = 4
        if title == WEIGHT_ONLY.title:
            del stranger.bits
        if "zero_point" in vars(stranger):
            stranger.zero_point = False
        vars(stranger).update({"sym": True} if "sym" in vars(stranger) else {})
        found = arguments_of(stranger)
        assert (found["group_size"], found["dtype"]) == (64, "nf4")
