"""The command that goes on with a run that was stopped, from what its journal says was asked for."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from woqfx.errors import CheckpointError

if TYPE_CHECKING:
    from woqfx.inspection import UnfinishedRun


def command_of(run: UnfinishedRun) -> str:
    """As it may be given again. Of calibration data in a file, the journal knows no more than the file's name.

    Raises `CheckpointError` for a journal that no run writes.
    """
    request = run.request
    if "format" in request:
        words = ["convert", run.source, *_converting(request)]
    elif "tuning" in request:
        words = ["tune", run.source, *_tuning(request)]
    else:
        words = ["quantize", run.source, *_quantizing(request)]
    return shlex.join(["woqfx", *words, "--out", str(run.path)])


def _converting(request: Mapping[str, Any]) -> Iterator[str]:
    yield from ("--to", str(request["format"]))
    if request.get("requantize"):
        yield "--requantize"


def _tuning(request: Mapping[str, Any]) -> Iterator[str]:
    yield from ("--original", str(request.get("original")))
    for key, value in _part(request, "tuning").items():
        yield from (f"--{key}", str(value))
    yield from _calibrating(request)


def _quantizing(request: Mapping[str, Any]) -> Iterator[str]:
    scheme = _part(request, "scheme")
    yield from ("--algorithm", str(request.get("algorithm", "rtn")))
    for key in ("dtype", "group_size", "scale_dtype", "compute_dtype"):
        yield from (f"--{key.replace('_', '-')}", str(scheme.get(key)))
    if not scheme.get("symmetric", True):
        yield "--asym"
    if scheme.get("double_quant"):
        yield "--double-quant"
    if threshold := scheme.get("outlier_threshold"):
        yield from ("--outlier-threshold", str(threshold))
    for key, value in _part(request, "options").items():
        yield from _option(key, value)
    for rule in _part(request, "rules", list):
        yield from ("--rule", str(rule))
    yield from _calibrating(request)
    if "propagate" in request:
        yield from ("--propagate", str(request["propagate"]))


def _option(key: str, value: Any) -> Iterator[str]:
    flag = key.replace("_", "-")
    if "." in key:  # one algorithm's, of several that have one of this name
        yield from ("--option", f"{key}={value}")
    elif isinstance(value, bool):
        yield f"--{flag}" if value else f"--no-{flag}"
    else:
        yield from (f"--{flag}", str(value))


def _calibrating(request: Mapping[str, Any]) -> Iterator[str]:
    asked = _part(request, "calibration")
    flags = {
        "data": "calibration",
        "samples": "samples",
        "seq_len": "seq-len",
        "seed": "calibration-seed",
        "column": "column",
        "split": "split",
    }
    for key, flag in flags.items():
        if key in asked:
            yield from (f"--{flag}", str(asked[key]))


def _part(request: Mapping[str, Any], key: str, kind: type = dict) -> Any:
    """What a request says under `key`, empty if nothing."""
    value = request.get(key, kind())
    if not isinstance(value, kind):
        raise CheckpointError(
            f"the run's journal says of {key} {value!r}: no run has written it so; start afresh with --overwrite, or "
            "choose another folder"
        )
    return value
