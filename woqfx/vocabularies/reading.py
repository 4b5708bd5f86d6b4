"""From a configuration, an object or a dictionary, to the arguments of `woqfx.quantize`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from woqfx.blocks.composition import read_composition
from woqfx.calibration.request import CalibrationRequest
from woqfx.errors import ConfigError, WoqfxError
from woqfx.plugins import registry
from woqfx.scheme import DEFAULT_DTYPE, Scheme, read_rules
from woqfx.vocabularies import huggingface, itrex, own
from woqfx.vocabularies.vocabulary import Reading, Vocabulary, check

#: By what a configuration says of itself: `quant_method`, or else the name of its class.
_HUGGING_FACE = {
    "awq": huggingface.AWQ,
    "gptq": huggingface.GPTQ,
    "bitsandbytes": huggingface.BITSANDBYTES,
    "awqconfig": huggingface.AWQ,
    "gptqconfig": huggingface.GPTQ,
    "bitsandbytesconfig": huggingface.BITSANDBYTES,
}
_ITREX = {
    "rtn": itrex.RTN_14,
    "awq": itrex.AWQ_14,
    "teq": itrex.TEQ_14,
    "gptq": itrex.GPTQ_14,
    "autoround": itrex.AUTOROUND_14,
    "rtnconfig": itrex.RTN_14,
    "awqconfig": itrex.AWQ_14,
    "teqconfig": itrex.TEQ_14,
    "gptqconfig": itrex.GPTQ_14,
    "autoroundconfig": itrex.AUTOROUND_14,
    "weightonlyquantconfig": itrex.WEIGHT_ONLY,
}
_BY_CLASS_ALONE = ("rtn", "teq", "autoround", "rtnconfig", "teqconfig", "autoroundconfig", "weightonlyquantconfig")

#: Every vocabulary, in the order of the documentation.
VOCABULARIES = (
    itrex.WEIGHT_ONLY,
    itrex.RTN_14,
    itrex.AWQ_14,
    itrex.TEQ_14,
    itrex.GPTQ_14,
    itrex.AUTOROUND_14,
    huggingface.AWQ,
    huggingface.GPTQ,
    huggingface.BITSANDBYTES,
)


@runtime_checkable
class Config(Protocol):
    """A configuration that says itself what it asks for: woqfx's own classes do."""

    def arguments(self) -> dict[str, Any]:
        """The arguments of `woqfx.quantize`."""


def arguments_of(config: Any) -> dict[str, Any]:
    """What a configuration asks for, as arguments of `woqfx.quantize`. It is an object or a dictionary.

    Known are transformers' `AwqConfig`, `GPTQConfig` and `BitsAndBytesConfig` (4.37 to 5), the original's
    `WeightOnlyQuantConfig` and the classes of its version 1.4, and woqfx's own. What has no effect here is told by a
    warning. Raises `ConfigError` with everything that cannot be honoured.
    """
    if isinstance(config, type):
        raise ConfigError(config.__name__, [f"this is the class: give an object, {config.__name__}(...)"])
    if isinstance(config, Config):
        return config.arguments()
    vocabulary, values = _understood(config)
    return arguments_in(vocabulary, values)


def arguments_in(vocabulary: Vocabulary, values: Mapping[str, Any]) -> dict[str, Any]:
    """The same for values of a known vocabulary."""
    reading = vocabulary.read(values)
    reading.problems += _contradictions(reading)
    check(reading)
    for notice in reading.notices:
        warnings.warn(notice, stacklevel=3)
    return reading.arguments


def _understood(config: Any) -> tuple[Vocabulary, dict[str, Any]]:
    """Whose configuration it is, and what it holds, without what says whose it is."""
    # `_load_in_8bit`, of objects and in files, is what stands behind the property `load_in_8bit`.
    values = {
        name.lstrip("_"): value.value if isinstance(value, Enum) else value for name, value in _held(config).items()
    }
    method = values.pop("quant_method", None)
    title = "" if isinstance(config, Mapping) else type(config).__name__.lower()
    if values.get("load_in_8bit") or values.get("load_in_4bit"):
        method = "bitsandbytes"
    kind = str(method or title or ("weightonlyquantconfig" if "weight_dtype" in values else "")).lower()
    if method == "woqfx":
        return own.WOQFX, values
    originals = kind in _BY_CLASS_ALONE or {"weight_dtype", "compute_dtype"} & values.keys()
    vocabulary = (_ITREX if originals else _HUGGING_FACE).get(kind)
    if vocabulary is None:
        found = f"quant_method {method!r}" if method else type(config).__name__
        raise ConfigError(
            found,
            [
                "no configuration that woqfx knows: give WeightOnlyQuantConfig, AwqConfig, GPTQConfig or "
                "BitsAndBytesConfig, or the arguments of woqfx.quantize"
            ],
        )
    if not isinstance(config, Mapping):
        values = _said(config, values, {parameter.name for parameter in vocabulary.parameters})
    return vocabulary, values


def _held(config: Any) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    try:
        held: Mapping[str, Any] = vars(config)
    except TypeError:
        raise ConfigError(type(config).__name__, ["a configuration is an object or a dictionary"]) from None
    return held


def _said(config: Any, values: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """Attributes that parameters stand behind, not those that a base class keeps for itself."""
    constructor: Callable[..., Any] = type(config).__init__
    names = known | set(inspect.signature(constructor).parameters)
    return {name: value for name, value in values.items() if name in names}


def _contradictions(reading: Reading) -> list[str]:
    """What no parameter alone is guilty of: what the scheme, the algorithm and the data say to the arguments."""
    asked = reading.arguments
    problems: list[str] = []

    def attempt(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except WoqfxError as error:
            problems.append(str(error))
            return None

    scheme = {name: asked[name] for name in _SCHEME if name in asked}
    attempt(lambda: Scheme(**{"dtype": DEFAULT_DTYPE, **scheme}))
    attempt(lambda: read_rules(asked.get("rules", ())))
    attempt(lambda: read_composition(asked.get("algorithm", "rtn"), asked.get("options", {})))
    data = {name: asked[name] for name in ("samples", "seq_len") if name in asked}
    attempt(lambda: CalibrationRequest(**data))
    if isinstance(compute := asked.get("compute_dtype"), str):
        attempt(lambda: registry().compute_dtype(compute))
    if isinstance(backend := asked.get("backend"), str):
        attempt(lambda: registry().backend(backend))
    dtype = attempt(lambda: registry().dtype(asked["dtype"])) if isinstance(asked.get("dtype"), str) else None
    if dtype is not None and asked.get("symmetric") is False and not dtype.has_asymmetric:
        problems.append(f"{dtype.name} has no asymmetric form: ask for a symmetric scheme, or for an integer dtype")
    return problems


_SCHEME = (*("dtype", "group_size", "symmetric", "scale_dtype", "double_quant", "compute_dtype", "outlier_threshold"),)
