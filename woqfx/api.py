"""The functions that users call: quantize, plan, load, save, register."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from woqfx import engine, saving
from woqfx.asking import Asked, plan_asked, takes_asked
from woqfx.blocks.report import report_file
from woqfx.calibration import Calibration, prepare_calibration
from woqfx.config import adopt_generation
from woqfx.done import Done
from woqfx.in_memory import QuantizedInMemory
from woqfx.loading import load_model, open_checkpoint
from woqfx.options import read_options
from woqfx.paths import read_path
from woqfx.places import Places
from woqfx.planned import Plan
from woqfx.plugins import registry
from woqfx.pretrained import remember
from woqfx.progress import Progress, showing
from woqfx.provenance import Provenance
from woqfx.qtensor import QTensor
from woqfx.source import ModuleSource, Source, open_source


@takes_asked
def quantize(
    model: nn.Module | str | Path,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    backend_options: Mapping[str, Any] | None = None,
    progress: Progress = "auto",
    **asked: Unpack[Asked],
) -> nn.Module:
    """Quantize a model's weights, and return the model ready to run.

    `model` is a live module (the same object comes back, its weights replaced; from a backend that runs whole models
    by itself a model of its own comes, and the module stays as it was), a folder, a `.gguf` file, or a name on the
    Hugging Face Hub. With `out`, a checkpoint is written there as well; from a folder it is
    streamed, one tensor at a time, and a killed run goes on when it is called again.

    Linear layers and stacks of experts are quantized; embeddings and the output head are kept, and so is
    whatever `rules` say: `"*.down_proj=int8"`, `("model.layers.0.*", "keep")`, the last match wins.
    `algorithm` is a name, or several: "awq+gptq" takes the one's rescaling and the other's rounding. `options` are the
    algorithm's own; where two parts have one of the same name, it is written "gptq.name".

    An algorithm that looks at data sees `samples` sequences of `seq_len` tokens. `calibration` is the name of a set, a
    file, a set on the Hub, or the data themselves (see `woqfx.calibration.CalibrationRequest`, which also tells of
    `column`, `split` and `tokenizer`); `calibration_seed` decides which texts are taken. `propagate` is what each block
    sees of those before it: "quantized" for what they give once they are quantized, or "float".

    `config` is a configuration that says all that: transformers' `AwqConfig`, `GPTQConfig` or `BitsAndBytesConfig`, the
    original's `WeightOnlyQuantConfig`, or a dictionary of one (docs/configurations.md). Arguments that it leaves open
    can be given beside it.

    With `target_bits`, weights take so many bits each in the mean, scales included: on calibration data it is measured
    which layers need more and which can do with less, and each gets a dtype and group size of its own.

    `backend_options` are those of a backend that runs whole models (see `woqfx.load`). `progress` is "auto" (a bar on a
    terminal, else nothing), "bar", "lines", "json" or "none".

    Raises `PlanError` with every problem at once, before any work is done; `SourceError`, `WeightError` and
    `OutputError` for what only shows on the way.
    """
    source = open_source(model)
    if out is not None:
        out = read_path(out, "out")
        engine.check_output(source, out, overwrite=overwrite)
    plan = plan_asked(source, asked)
    plan.check()
    for warning in plan.warnings:
        warnings.warn(warning, stacklevel=3)  # the caller's line, behind what `takes_asked` wraps around this
    if isinstance(source, ModuleSource):
        return _quantize_module(source, plan, out, backend_options, overwrite=overwrite, progress=progress)
    if out is None:
        return _quantize_into_memory(source, plan, backend_options, progress)
    quantize_to(source, plan, out, overwrite=overwrite, progress=progress)
    return load(out, backend=plan.request.backend, backend_options=backend_options)


def quantize_to(
    source: Source,
    plan: Plan,
    out: str | Path,
    *,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress = "auto",
) -> None:
    """Write the checkpoint of a checked plan, without loading it; `workers` threads each work on a tensor."""
    with showing(progress):
        calibration = calibrate(source, plan)
        for _ in engine.write_checkpoint(
            source, plan, Path(out), calibration=calibration, overwrite=overwrite, workers=workers
        ):
            pass


def calibrate(source: Source, plan: Plan) -> Calibration | None:
    """The calibration data that a plan asks for; None if its algorithm looks at none. Raises `CalibrationError`."""
    asked = plan.request.calibration
    return None if asked is None else prepare_calibration(asked, source)


def _quantize_module(
    source: ModuleSource,
    plan: Plan,
    out: str | Path | None,
    backend_options: Mapping[str, Any] | None,
    *,
    overwrite: bool,
    progress: Progress,
) -> nn.Module:
    """All weights are quantized and packed before the first is replaced: an error leaves the module as it was."""
    backend = registry().backend(plan.request.backend)
    options = read_options(f"backend {backend.name}", backend.Options, backend_options or {})
    calibration = calibrate(source, plan)
    steps = (
        engine.quantize_in_memory(source, plan, calibration)
        if out is None
        else engine.write_checkpoint(source, plan, Path(out), calibration=calibration, overwrite=overwrite)
    )
    with showing(progress):
        done = {step.name: step for step in steps}
    model = source.skeleton
    record = provenance_of_run(source, plan, calibration, _facts(done))
    own = backend.model(QuantizedInMemory(source, plan, done.values()), model, options)
    if own is not None:
        return _finished(own, record, source.label)
    packed = {
        name: backend.pack(step.result, plan.quantized[name].float_dtype)
        for name, step in done.items()
        if isinstance(step.result, QTensor)
    }
    places = Places(model, source.label)
    for name, step in done.items():
        if isinstance(step.result, QTensor):
            places.install(name, packed[name])
        elif step.changed:
            places.put(name, step.result)
    remember(model, record)
    return model


def _quantize_into_memory(
    source: Source, plan: Plan, backend_options: Mapping[str, Any] | None, progress: Progress
) -> nn.Module:
    calibration = calibrate(source, plan)
    with showing(progress):
        done = {step.name: step for step in engine.quantize_in_memory(source, plan, calibration)}
    backend, made = registry().backend(plan.request.backend), QuantizedInMemory(source, plan, done.values())
    model = load_model(made, backend, copy.deepcopy(source.skeleton), backend_options)
    return _finished(model, provenance_of_run(source, plan, calibration, _facts(done)), source.label)


def _finished(model: nn.Module, origin: Provenance, label: str) -> nn.Module:
    """What a loaded model knows beside its weights."""
    adopt_generation(model, origin.sidecars, label)
    for holder in (model, getattr(model, "config", None)):
        if hasattr(holder, "name_or_path"):  # as from_pretrained has it: adapters are saved with the name of their base
            setattr(holder, "name_or_path", label)  # noqa: B010 - a class that this module does not know
    remember(model, origin)
    return model


def _facts(done: Mapping[str, Done]) -> dict[str, Mapping[str, Any]]:
    return {name: step.facts() for name, step in done.items()}


def provenance_of_run(
    source: Source, plan: Plan, calibration: Calibration | None, facts: Mapping[str, Mapping[str, Any]]
) -> Provenance:
    """What a model remembers of the run that quantized it; `facts` are those of each tensor (`Done.facts`)."""
    errors = {name: of_one["error"] for name, of_one in facts.items() if name in plan.quantized}
    request = engine.describe_request(plan, calibration)
    files = {**source.sidecars(), **report_file(request, facts)}
    return Provenance(request, errors, source.config(), dict(source.aliases), files)


@takes_asked
def plan(model: nn.Module | str | Path, **asked: Unpack[Asked]) -> Plan:
    """What `quantize` would do with the same arguments: each weight's scheme, size and kernel, and every problem.

    Reads headers only, whatever the model's size; with `target_bits`, it goes through the whole model.
    """
    return plan_asked(open_source(model), asked)


def load(
    path: str | Path,
    *,
    backend: str = "torch_cpu",
    model: nn.Module | None = None,
    backend_options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Load a checkpoint, ready to run: `model.generate(...)` for a language model.

    `model` is the module tree for a checkpoint that was made from a module transformers does not know; its
    weights are replaced, and it is returned. `backend_options` are the backend's own (its `Options`). Raises
    `CheckpointError`, or `UnfinishedError` for a run that was stopped, and `PlanError` if the backend cannot run the
    checkpoint.
    """
    stored = open_checkpoint(read_path(path, "path"))
    loaded = load_model(stored, registry().backend(backend), model, backend_options)
    return _finished(loaded, Provenance.of(stored), stored.label)


def save(model: nn.Module, out: str | Path, *, overwrite: bool = False) -> None:
    """Write a quantized model as a checkpoint: unless it was changed, the same bytes as those it was loaded from."""
    saving.save(model, read_path(out, "out"), overwrite=overwrite)


def register(plugin: Any, name: str) -> None:
    """Add a plugin of this process, without a package: an object or module with `@woqfx.hookimpl` functions."""
    registry().register(plugin, name)


def unregister(name: str) -> None:
    """Take out a plugin that `register` added."""
    registry().unregister(name)
