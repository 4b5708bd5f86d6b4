"""The configurations of Intel Extension for Transformers: `WeightOnlyQuantConfig` (1.3), and those of 1.4.

Nothing is rewritten: the original turned int4_fullrange, and int8 where `bits` was left out, into int4_clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from woqfx.plugins import registry
from woqfx.vocabularies.readers import asks, chosen, kept_modules, option, refused, without_effect, yes_or_no
from woqfx.vocabularies.values import ask_for_data, compute_dtype, float_name
from woqfx.vocabularies.vocabulary import Parameter, Reader, Reading, Vocabulary

#: Names of the original for dtypes that have a name of their own here.
DTYPES: Mapping[str, str] = {"int4": "int4_clip", "fp4": "fp4_bnb", "fp4_e2m1_bnb": "fp4_bnb"}

#: What the original called the options of algorithms, in `algorithm_args`.
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "gptq": {"act_order": "desc_act", "percdamp": "damp_percent", "block_size": "blocksize"},
    "awq": {"auto_clip": "clip", "mse_range": "clip"},
    "teq": {"train_steps": "steps", "lr": "learning_rate", "warmup_ratio": "warmup"},
}

_DEVICE = "woqfx runs on the CPU"
_PREQUANTIZED = "to run a model that is quantized already, give its folder to woqfx.load"


def _weight_dtype(reading: Reading, name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        reading.refuse(name, "it is the name of a dtype")
        return
    dtype = DTYPES.get(value, value)
    known = registry().names("dtype")
    if dtype not in known:
        why = "an 8-bit float has no form here; int8 takes as much room" if value.startswith("fp8") else "no such dtype"
        reading.refuse(name, f"{why}; there are {', '.join(known)}")
        return
    reading.ask(dtype=dtype)


def _scale_dtype(reading: Reading, name: str, value: Any) -> None:
    found = "fp32" if value is None else float_name(value)
    if found.startswith("fp8"):
        reading.refuse(name, "8-bit scales are use_double_quant=True here; otherwise fp32, fp16 or bf16")
    else:
        reading.ask(scale_dtype=found)


def _algorithm(reading: Reading, name: str, value: Any) -> None:
    if isinstance(value, str):
        reading.ask(algorithm=value.lower())
    else:
        reading.refuse(name, "it is the name of an algorithm: RTN, AWQ, TEQ, GPTQ")


def _algorithm_args(reading: Reading, name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        reading.refuse(name, "it is a dictionary of the algorithm's options")
        return
    names = _OPTIONS.get(str(reading["algorithm"]).lower(), {})
    for key, given in value.items():
        if key in ("nsamples", "n_samples"):
            reading.ask(samples=given)
        elif key in ("pad_max_length", "seq_len"):
            reading.ask(seq_len=given)
        else:
            reading.option(names.get(key, key), given)


def _mse_range(reading: Reading, name: str, value: Any) -> None:
    algorithm = reading.arguments.get("algorithm", "rtn")
    if value is None:
        return
    if algorithm == "rtn":
        reading.option("mse_range", value)
    elif algorithm in ("awq", "teq"):
        reading.option("clip", value)
    else:
        reading.refuse(name, f"{algorithm} decides on clipping itself; leave it out")


def _double_quant_scale(reading: Reading, name: str, value: Any) -> None:
    if value is not None and float_name(value) != "fp32":
        reading.refuse(name, "ranges of double-quantized scales are fp32; leave it out")


def _dataset(reading: Reading, name: str, value: Any) -> None:
    if value is not None and reading["calib_dataloader"] is not None:
        reading.refuse(name, "calib_dataloader is given as well; one of them can be")
    elif value is not None:
        reading.ask(calibration=value)


def _loader(reading: Reading, name: str, value: Any) -> None:
    if value is not None:
        ask_for_data(reading, name, value, most=reading["calib_iters"])


_ITERS = 100


def _iters(reading: Reading, name: str, value: Any) -> None:
    if value == _ITERS and reading.arguments.get("algorithm", "rtn") == "rtn":
        return  # a default is not to look like somebody's choice of data, of which round to nearest reads none
    if reading["calib_dataloader"] is None and "samples" not in reading.arguments:
        reading.ask(samples=value)


def _neural_speed(reading: Reading, name: str, value: Any) -> None:
    if value is None:
        return
    implied = "llm_runtime" if value else "torch_cpu"
    if reading["backend"] not in (None, implied):
        reading.refuse(name, f"backend={reading['backend']!r} says otherwise; leave one of them out")
    reading.ask(backend=implied)


def _bits(usual: int) -> Reader:
    """`bits`, which must agree with the dtype that `weight_dtype` names; without that it chooses one."""

    def read(reading: Reading, name: str, value: Any) -> None:
        dtype = reading.arguments.get("dtype")
        if dtype is None and reading["weight_dtype"] is None:
            chosen({4: {"dtype": "int4_clip"}, 8: {"dtype": "int8"}})(reading, name, usual if value is None else value)
        elif dtype is not None and value is not None and value != registry().dtype(dtype).bits:
            has = registry().dtype(dtype).bits
            reading.refuse(name, f"weight_dtype={reading['weight_dtype']!r} has {has}; leave bits out, or say {has}")

    return read


def _zero_point(reading: Reading, name: str, value: bool) -> None:
    reading.ask(symmetric=not value)


def _own_quantization(why: str) -> Reader:
    return yes_or_no(refused(why))


_DTYPES_ROW = "`dtype`; int4 is int4_clip, fp4 and fp4_e2m1_bnb are fp4_bnb; fp8 has no form here and is refused"
_COMPUTE_ROW = "`compute_dtype`: fp32, bf16, int8, as a name or torch's type; fp16 is refused"
_SCALE_ROW = "`scale_dtype`: fp32, fp16, bf16; fp8 is refused"
_SKIP_ROW = "a rule for each: the module and all in it are kept; the output head is kept in any case"

_TYPES = (
    Parameter("compute_dtype", "fp32", compute_dtype, _COMPUTE_ROW),
    Parameter("scale_dtype", "fp32", _scale_dtype, _SCALE_ROW),
    Parameter("group_size", 32, asks("group_size"), "`group_size`; -1 is one group for each row"),
    Parameter("use_double_quant", False, asks("double_quant"), "`double_quant`: scales in 8 bits"),
    Parameter("double_quant_scale_dtype", None, _double_quant_scale, "fp32, or refused"),
    Parameter("llm_int8_skip_modules", None, kept_modules, _SKIP_ROW),
)

_DATA = (
    Parameter("tokenizer", None, asks("tokenizer"), "`tokenizer`: an object, a folder or a name"),
    Parameter("calib_dataloader", None, _loader, "calibration data: its first `calib_iters` batches or texts"),
    Parameter(
        "calib_func",
        None,
        refused("woqfx runs the model itself; give the data, as a data set or calib_dataloader"),
        "refused: woqfx runs the model itself",
    ),
    Parameter("calib_iters", _ITERS, _iters, "`samples`: as many sequences; of a calib_dataloader, as many batches"),
)

_RUNNING = (
    Parameter("use_neural_speed", None, _neural_speed, 'True: `backend="llm_runtime"`; False: `backend="torch_cpu"`'),
    Parameter("use_ggml", False, _own_quantization("the kernels are woqfx's own"), "refused unless it is False"),
    Parameter("use_ipex", False, _own_quantization("the kernels are woqfx's own"), "refused unless it is False"),
    Parameter("device", "auto", refused(_DEVICE, "cpu", None), "auto or cpu; refused for others"),
    Parameter("backend", None, asks("backend"), "`backend`: torch_cpu or llm_runtime"),
)

WEIGHT_ONLY = Vocabulary(
    "WeightOnlyQuantConfig",
    (
        Parameter("weight_dtype", "nf4", _weight_dtype, _DTYPES_ROW),
        *_TYPES,
        Parameter(
            "scheme",
            "sym",
            chosen({"sym": {"symmetric": True}, "asym": {"symmetric": False}}),
            "`symmetric`: sym or asym",
        ),
        Parameter("algorithm", "RTN", _algorithm, "`algorithm`, in small letters: RTN, AWQ, TEQ, GPTQ, and others"),
        Parameter(
            "algorithm_args",
            None,
            _algorithm_args,
            "`options` of the algorithm, under their own or the original's names; nsamples is `samples`, "
            "pad_max_length is `seq_len`",
        ),
        Parameter(
            "mse_range",
            None,
            _mse_range,
            "a search for clipped ranges: RTN's option `mse_range`, AWQ's and TEQ's `clip`. None, where the original "
            "has False, leaves it to the algorithm",
        ),
        *_DATA,
        Parameter(
            "calib_dataset", None, _dataset, "`calibration`; None is woqfx's own default, which needs no network"
        ),
        *_RUNNING,
        Parameter("use_quant", True, _own_quantization("there is nothing to do then"), "refused unless it is True"),
        Parameter("use_gptq", False, _own_quantization(_PREQUANTIZED), "refused unless it is False"),
        Parameter("use_autoround", False, _own_quantization(_PREQUANTIZED), "refused unless it is False"),
        Parameter("low_bit_model", False, _own_quantization(_PREQUANTIZED), "refused unless it is False"),
    ),
)


def _family(title: str, algorithm: str, bits: int, *own: Parameter) -> Vocabulary:
    """One of the classes of 1.4, which share most of their parameters."""
    return Vocabulary(
        title,
        (
            Parameter("weight_dtype", None, _weight_dtype, _DTYPES_ROW),
            Parameter(
                "bits",
                None,
                _bits(bits),
                f"4 is int4_clip, 8 is int8; None is {bits}, as in the original, unless weight_dtype says it. Both "
                "must agree",
            ),
            *_TYPES,
            *own,
            *_DATA,
            *_RUNNING,
        ),
        {"algorithm": algorithm},
    )


_SYM = Parameter("sym", True, asks("symmetric"), "`symmetric`")
_LAYER_WISE = Parameter(
    "layer_wise",
    False,
    without_effect("woqfx always works on a layer or block at a time"),
    "no effect, with a notice: it is always so",
)
_DATASET = Parameter("dataset", None, _dataset, "`calibration`; None is woqfx's own default, which needs no network")
_MSE_RANGE = Parameter("mse_range", None, _mse_range, "a search for clipped ranges; None leaves it to the algorithm")

RTN_14 = _family(
    "RtnConfig",
    "rtn",
    4,
    _SYM,
    _MSE_RANGE,
    _LAYER_WISE,
    Parameter("use_quant", True, _own_quantization("there is nothing to do then"), "refused unless it is True"),
)

AWQ_14 = _family(
    "AwqConfig",
    "awq",
    8,
    Parameter("zero_point", True, yes_or_no(_zero_point), "`symmetric=False`; False is `symmetric=True`"),
    _MSE_RANGE,
    _DATASET,
)

TEQ_14 = _family("TeqConfig", "teq", 8, _SYM, _DATASET)

GPTQ_14 = _family(
    "GPTQConfig",
    "gptq",
    4,
    _SYM,
    _DATASET,
    Parameter("blocksize", 128, option("blocksize"), "GPTQ's option `blocksize`"),
    Parameter("damp_percent", 0.1, option("damp_percent"), "GPTQ's option `damp_percent`"),
    Parameter("desc_act", False, option("desc_act"), "GPTQ's option `desc_act`"),
    Parameter("static_groups", False, option("static_groups"), "GPTQ's option `static_groups`"),
    Parameter("true_sequential", False, option("true_sequential"), "GPTQ's option `true_sequential`"),
    Parameter("nsamples", None, asks("samples"), "`samples`, before `calib_iters`"),
    Parameter("max_input_length", None, asks("seq_len"), "`seq_len`"),
    _LAYER_WISE,
)


def _propagate(reading: Reading, name: str, value: bool) -> None:
    reading.ask(propagate="quantized" if value else "float")


_RATE = "the learning of `best` has a rate of its own, its option `rate`; leave it out"

AUTOROUND_14 = _family(
    "AutoRoundConfig",
    "best",
    4,
    Parameter("sym", False, asks("symmetric"), "`symmetric`"),
    _DATASET,
    Parameter("iters", 200, option("iterations"), "the option `iterations` of the algorithm `best`"),
    Parameter("nsamples", 512, asks("samples"), "`samples`, before `calib_iters`"),
    Parameter("calib_len", 2048, asks("seq_len"), "`seq_len`"),
    Parameter(
        "enable_quanted_input", True, yes_or_no(_propagate), '`propagate`: "quantized", or "float" if it is False'
    ),
    Parameter("lr", None, refused(_RATE), "refused: the algorithm `best` has a rate of its own"),
    Parameter("minmax_lr", None, refused(_RATE), "refused: the algorithm `best` has a rate of its own"),
)
