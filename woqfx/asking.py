"""What users ask for: the arguments that `quantize` and `plan` share, and the request that they make."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypedDict, TypeVar, cast

from woqfx.calibration import CalibrationRequest
from woqfx.calibration.request import Data
from woqfx.mixed.mixing import plan_within
from woqfx.planned import Plan
from woqfx.request import Propagate, Request
from woqfx.scheme import DEFAULT_DTYPE, Rules, Scheme
from woqfx.source import Source
from woqfx.vocabularies import add_config
from woqfx.wording import nearest

F = TypeVar("F", bound=Callable[..., Any])


class Asked(TypedDict, total=False):
    """The arguments that `woqfx.quantize` and `woqfx.plan` share; `quantize` says what they mean."""

    config: Any
    algorithm: str
    dtype: str
    group_size: int
    symmetric: bool
    scale_dtype: str
    double_quant: bool
    compute_dtype: str
    outlier_threshold: float
    backend: str
    rules: Rules
    options: Mapping[str, Any] | None
    calibration: Data
    samples: int
    seq_len: int
    calibration_seed: int
    column: str | None
    split: str | None
    tokenizer: Any
    propagate: Propagate
    target_bits: float | None


#: Names of `CalibrationRequest` that mean too little beside a model.
_DATA_NAMES = {"data": "calibration", "seed": "calibration_seed"}


def _defaults_of(kind: type[Any]) -> dict[str, Any]:
    return {one.name: one.default for one in dataclasses.fields(kind) if one.default is not dataclasses.MISSING}


#: What holds for an argument that is not given, in the order of `Asked`. Schemes and requests for data have the say.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    dict.fromkeys(Asked.__annotations__)  # None: no configuration, no options, no target
    | {name: value for name, value in _defaults_of(Request).items() if name in Asked.__annotations__}
    | {"dtype": DEFAULT_DTYPE, **_defaults_of(Scheme)}
    | {_DATA_NAMES.get(name, name): value for name, value in _defaults_of(CalibrationRequest).items()}
)


def takes_asked(function: F) -> F:
    """A function of `**asked: Unpack[Asked]`, in whose signature each of them shows, with its default.

    Type checkers and editors read `Unpack`; `help`, notebooks and `inspect.signature` read this signature. An argument
    that is in neither raises `TypeError` with the nearest name.
    """
    signature = inspect.signature(function)
    own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS[name], annotation=kind.__forward_arg__)
        for name, kind in Asked.__annotations__.items()
    ]
    explicit = signature.replace(parameters=[own[0], *shared, *own[1:]])

    @functools.wraps(function)
    def checked(*args: Any, **given: Any) -> Any:
        for name in given.keys() - explicit.parameters.keys():
            near = nearest(name, explicit.parameters)
            hint = f"; did you mean {near[0]!r}?" if near else f"; its arguments: {', '.join(explicit.parameters)}"
            raise TypeError(f"woqfx.{function.__name__} has no argument {name!r}{hint}")
        return function(*args, **given)

    checked.__signature__ = explicit  # type: ignore[attr-defined]
    return cast("F", checked)


def plan_asked(source: Source, asked: Asked) -> Plan:
    """The plan for a model and what was asked for; with `target_bits` the layers are measured first."""
    return plan_within(source, read_request(asked), asked.get("target_bits"))


def read_request(asked: Asked) -> Request:
    """The request that was asked for, a configuration's share included; `target_bits` is not part of it.

    Raises `ConfigError` if the configuration and the arguments beside it say two things.
    """
    given: dict[str, Any] = {**DEFAULTS, **asked}
    config = given.pop("config")
    del given["target_bits"]
    if config is not None:
        given = add_config(config, given, DEFAULTS)
    data = {
        field.name: given.pop(_DATA_NAMES.get(field.name, field.name))
        for field in dataclasses.fields(CalibrationRequest)
    }
    return Request.read(**{**given, "calibration": CalibrationRequest(**data)})
