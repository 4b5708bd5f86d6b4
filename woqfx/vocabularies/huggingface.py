"""The configurations of transformers: AwqConfig, GPTQConfig and BitsAndBytesConfig, of versions 4.37 to 5.23."""

from __future__ import annotations

import re
from typing import Any

from woqfx.vocabularies.readers import asks, chosen, kept_modules, option, refused, without_effect, yes_or_no
from woqfx.vocabularies.values import ask_for_data, compute_dtype
from woqfx.vocabularies.vocabulary import Parameter, Reading, Vocabulary

_GPU_KERNEL = "it chooses among kernels for GPUs"
_LAYOUT = "it is a layout of files for GPU kernels; weights are stored in woqfx's own"
_FUSING = 'it changes speed alone; the backend "llm_runtime" runs whole models fused'
_OF_GPTQ = "it is GPTQ's, and AWQ has nothing like it"


def _clip_bits(four: str) -> Any:
    return chosen({2: {"dtype": "int2"}, 3: {"dtype": "int3"}, 4: {"dtype": four}, 8: {"dtype": "int8"}})


def _zero_point(reading: Reading, name: str, value: bool) -> None:
    reading.ask(symmetric=not value)


def _model_seqlen(reading: Reading, name: str, value: Any) -> None:
    if value is not None:
        reading.ask(seq_len=value)


def _dataset(reading: Reading, name: str, value: Any) -> None:
    if isinstance(value, str):
        known = ("wikitext2", "c4", "c4-new", "ptb", "ptb-new")
        if value in known:
            reading.ask(calibration=value)
        else:
            reading.refuse(name, f"it is a list of texts, or one of {', '.join(known)}")
    elif isinstance(value, list | tuple):
        ask_for_data(reading, name, value)
    elif value is not None:
        reading.refuse(name, "it is a list of texts, or the name of a set")


def _fusing(reading: Reading, name: str, value: Any) -> None:
    if value is not None and not isinstance(value, bool):
        reading.refuse(name, "it is True or False")
    elif value and reading["fuse_max_seq_len"] is None:
        reading.refuse(name, "it needs fuse_max_seq_len; here fusing has no effect: leave it out")
    elif value:
        reading.notice(name, _FUSING)


AWQ = Vocabulary(
    "transformers.AwqConfig",
    (
        Parameter("bits", 4, _clip_bits("int4_clip"), "2, 3, 4, 8: the dtypes int2, int3, int4_clip, int8"),
        Parameter("group_size", 128, asks("group_size"), "`group_size`; -1 is one group for each row"),
        Parameter("zero_point", True, yes_or_no(_zero_point), "`symmetric=False`; False is `symmetric=True`"),
        Parameter(
            "version",
            "gemm",
            without_effect(_LAYOUT, "gemv", among=("gemm", "gemv", "gemv_fast", "llm-awq", "exllama", "ipex")),
            "no effect, with a notice for other than gemm and gemv: a layout for GPU kernels",
        ),
        Parameter(
            "format",
            "gemm",
            without_effect(_LAYOUT, "gemv", among=("gemm", "gemv", "gemv_fast", "llm-awq")),
            "the name of `version` in transformers 5: as above",
        ),
        Parameter(
            "backend",
            "auto",
            without_effect(_GPU_KERNEL, "autoawq"),
            "no effect, with a notice for other than auto and autoawq: it chooses among GPU kernels",
        ),
        Parameter("do_fuse", None, _fusing, "no effect, with a notice: fusing changes speed alone"),
        Parameter("fuse_max_seq_len", None, without_effect(_FUSING), "no effect, with a notice"),
        Parameter("modules_to_fuse", None, without_effect(_FUSING), "no effect, with a notice"),
        Parameter("modules_to_not_convert", None, kept_modules, "a rule for each: the module and all in it are kept"),
        Parameter("tokenizer", None, asks("tokenizer"), "`tokenizer`, for the calibration texts"),
        Parameter("dataset", None, _dataset, "calibration data, as for GPTQConfig"),
        Parameter("model_seqlen", None, _model_seqlen, "`seq_len`"),
        Parameter("exllama_config", None, without_effect(_GPU_KERNEL), "no effect, with a notice"),
        Parameter("damp_percent", 0.1, refused(_OF_GPTQ), "refused unless it is the default"),
        Parameter("desc_act", False, refused(_OF_GPTQ), "refused unless it is the default"),
        Parameter("act_group_aware", True, refused(_OF_GPTQ), "refused unless it is the default"),
        Parameter("true_sequential", True, refused(_OF_GPTQ), "refused unless it is the default"),
        Parameter("sym", True, refused("AWQ says it by zero_point"), "refused unless it is the default"),
        Parameter("meta", None, without_effect("it describes a file"), "no effect, with a notice"),
        Parameter("block_name_to_quantize", None, refused(_OF_GPTQ), "refused"),
        Parameter("module_name_preceding_first_block", None, refused(_OF_GPTQ), "refused"),
        Parameter("batch_size", 1, refused(_OF_GPTQ), "refused unless it is the default"),
        Parameter("pad_token_id", None, refused(_OF_GPTQ), "refused"),
        Parameter("max_input_length", None, without_effect(_GPU_KERNEL), "no effect, with a notice"),
        Parameter("cache_block_outputs", True, refused(_OF_GPTQ), "refused unless it is the default"),
        Parameter("modules_in_block_to_quantize", None, refused(_OF_GPTQ), "refused"),
    ),
    {"algorithm": "awq"},
)


_BATCHES = "sequences of one length share batches, nothing is padded, and the result does not depend on it"
_CONDUCTED = "the model's own forward is run, so nothing has to be said about what comes before its blocks"
_STREAMED = "what a block gives is kept, in a file if it is large; nothing is computed twice"


def _act_group_aware(reading: Reading, name: str, value: bool) -> None:
    # transformers 5 switches it off where desc_act is on.
    reading.option("act_group_aware", value and reading["desc_act"] is not True)


def _blocks(reading: Reading, name: str, value: Any) -> None:
    """Both parameters about blocks: which row of blocks, and which modules in each."""
    row, inside = reading["block_name_to_quantize"], reading["modules_in_block_to_quantize"]
    if (name == "block_name_to_quantize") == (inside is not None):
        return  # both are said together, once
    if row is not None and not isinstance(row, str):
        reading.refuse("block_name_to_quantize", "it is the name of a module, as model.layers")
        return
    if inside is None:
        if row is not None:
            reading.rule(rf"re:(?!{re.escape(row)}\.\d+\.).*", "keep")
        return
    modules = _flat(inside)
    if modules is None:
        reading.refuse("modules_in_block_to_quantize", "it is a list of lists of module names")
        return
    block = r".*\.\d+" if row is None else rf"{re.escape(row)}\.\d+"
    reading.rule("*", "keep")
    for module in modules:
        reading.rule(rf"re:{block}\.{re.escape(module)}", {"dtype": reading.arguments.get("dtype")})


def _flat(listed: Any) -> list[str] | None:
    if not isinstance(listed, list | tuple) or not listed:
        return None
    names = [name for one in listed for name in (one if isinstance(one, list | tuple) else [one])]
    return names if names and all(isinstance(name, str) and name for name in names) else None


GPTQ = Vocabulary(
    "transformers.GPTQConfig",
    (
        Parameter("bits", 4, _clip_bits("int4_fullrange"), "2, 3, 4, 8: the dtypes int2, int3, int4_fullrange, int8"),
        Parameter("tokenizer", None, asks("tokenizer"), "`tokenizer`: an object, a folder or a name"),
        Parameter(
            "dataset",
            None,
            _dataset,
            "calibration data: texts, each one sequence; token ids; or wikitext2, c4, c4-new, ptb, ptb-new. "
            "None is woqfx's own default",
        ),
        Parameter("group_size", 128, asks("group_size"), "`group_size`; -1 is one group for each row"),
        Parameter("damp_percent", 0.1, option("damp_percent"), "GPTQ's option `damp_percent`"),
        Parameter("desc_act", False, option("desc_act"), "GPTQ's option `desc_act`"),
        Parameter(
            "act_group_aware",
            True,
            yes_or_no(_act_group_aware),
            "GPTQ's option `act_group_aware`; off where desc_act is on, as in transformers",
        ),
        Parameter("sym", True, asks("symmetric"), "`symmetric`"),
        Parameter("true_sequential", True, option("true_sequential"), "GPTQ's option `true_sequential`"),
        Parameter("use_cuda_fp16", False, without_effect(_GPU_KERNEL), "no effect, with a notice"),
        Parameter("model_seqlen", None, _model_seqlen, "`seq_len`; None is woqfx's own default, 512"),
        Parameter("block_name_to_quantize", None, _blocks, "rules: everything outside these blocks is kept"),
        Parameter(
            "module_name_preceding_first_block",
            None,
            without_effect(_CONDUCTED),
            "no effect, with a notice: not needed",
        ),
        Parameter("batch_size", 1, without_effect(_BATCHES), "no effect on the result, with a notice"),
        Parameter("pad_token_id", None, without_effect(_BATCHES), "no effect, with a notice: nothing is padded"),
        Parameter("use_exllama", None, without_effect(_GPU_KERNEL, False), "no effect, with a notice if it is True"),
        Parameter("disable_exllama", None, without_effect(_GPU_KERNEL, True), "no effect, with a notice if False"),
        Parameter("max_input_length", None, without_effect(_GPU_KERNEL), "no effect, with a notice"),
        Parameter("exllama_config", None, without_effect(_GPU_KERNEL), "no effect, with a notice"),
        Parameter("cache_block_outputs", True, without_effect(_STREAMED), "no effect on the result, with a notice"),
        Parameter(
            "modules_in_block_to_quantize",
            None,
            _blocks,
            "rules: of each block these modules alone are quantized, in the order of their use",
        ),
        Parameter(
            "format", "gptq", without_effect(_LAYOUT, among=("gptq", "gptq_v2", "marlin")), "no effect, a notice"
        ),
        Parameter("checkpoint_format", "gptq", without_effect(_LAYOUT), "an older name of `format`: as above"),
        Parameter("meta", None, without_effect("it describes a file"), "no effect, with a notice"),
        Parameter("backend", "auto", without_effect(_GPU_KERNEL, "auto_trainable", None), "no effect, with a notice"),
    ),
    {"algorithm": "gptq"},
)


_OF_EIGHT = "it is about load_in_8bit"
_OF_FOUR = "it is about load_in_4bit"
_MAIN_WEIGHTS = (
    "woqfx holds packed weights alone, which is what makes the model small; to train, put adapters on top of it (LoRA)"
)


def _eight(reading: Reading, name: str, value: bool) -> None:
    if value and reading["load_in_4bit"] is True:
        reading.refuse(name, "load_in_4bit is True as well; one of them can be")
    elif value:
        reading.ask(dtype="int8", group_size=-1, compute_dtype="int8", scale_dtype="fp32")
    elif reading["load_in_4bit"] is not True:
        reading.refuse(name, "load_in_4bit is False as well, so nothing is to be quantized; set one of them")


def _four(reading: Reading, name: str, value: bool) -> None:
    if value:
        reading.ask(group_size=64, scale_dtype="fp32")


def _threshold(reading: Reading, name: str, value: Any) -> None:
    if reading["load_in_8bit"] is True:
        reading.ask(outlier_threshold=value)
    else:
        without_effect(_OF_EIGHT)(reading, name, value)


def _only_four(read: Any) -> Any:
    def reader(reading: Reading, name: str, value: Any) -> None:
        (read if reading["load_in_4bit"] is True else without_effect(_OF_FOUR))(reading, name, value)

    return reader


def _bnb_compute(reading: Reading, name: str, value: Any) -> None:
    if reading["load_in_4bit"] is True:
        compute_dtype(reading, name, value)
    elif value is not None and str(value).removeprefix("torch.") != "float32":
        reading.notice(name, _OF_FOUR)


def _storage(reading: Reading, name: str, value: Any) -> None:
    if value is not None and str(value).removeprefix("torch.") != "uint8":
        reading.notice(name, "codes are stored as bytes; the type would matter to training on several GPUs")


BITSANDBYTES = Vocabulary(
    "transformers.BitsAndBytesConfig",
    (
        Parameter(
            "load_in_8bit",
            False,
            yes_or_no(_eight),
            "LLM.int8(): the dtype int8, a scale in fp32 for each row, compute dtype int8",
        ),
        Parameter("load_in_4bit", False, yes_or_no(_four), "groups of 64, scales in fp32"),
        Parameter("llm_int8_threshold", 6.0, _threshold, "`outlier_threshold`, of load_in_8bit"),
        Parameter(
            "llm_int8_skip_modules",
            None,
            kept_modules,
            "a rule for each: the module and all in it are kept; the output head is kept in any case",
        ),
        Parameter(
            "llm_int8_enable_fp32_cpu_offload",
            False,
            without_effect("all of the model is on the CPU"),
            "no effect, with a notice: all of the model is on the CPU",
        ),
        Parameter("llm_int8_has_fp16_weight", False, refused(_MAIN_WEIGHTS), "refused: packed weights alone are held"),
        Parameter(
            "bnb_4bit_compute_dtype",
            None,
            _bnb_compute,
            "the compute dtype: float32 is fp32, bfloat16 is bf16; float16 is refused",
        ),
        Parameter(
            "bnb_4bit_quant_type",
            "fp4",
            _only_four(chosen({"fp4": {"dtype": "fp4_bnb"}, "nf4": {"dtype": "nf4"}})),
            "nf4: the dtype nf4; fp4: fp4_bnb, which has the levels of bitsandbytes",
        ),
        Parameter("bnb_4bit_use_double_quant", False, _only_four(asks("double_quant")), "`double_quant`"),
        Parameter("bnb_4bit_quant_storage", None, _storage, "no effect, with a notice for other than uint8"),
    ),
    {"algorithm": "rtn"},
)
