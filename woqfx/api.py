"""The functions that users call: quantize, plan, load, save, register."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from woqfx import engine, saving
from woqfx.blocks.report import report_file
from woqfx.calibration import Calibration, CalibrationRequest, prepare_calibration
from woqfx.calibration.request import Data
from woqfx.config import adopt_generation
from woqfx.disk.checkpoint import Checkpoint
from woqfx.done import Done
from woqfx.layers import install
from woqfx.loading import assemble_quantized, load_model, open_checkpoint
from woqfx.mixed.mixing import plan_within
from woqfx.planning import Plan, Propagate, Request
from woqfx.plugins import registry
from woqfx.progress import Progress, showing
from woqfx.provenance import Provenance
from woqfx.qtensor import QTensor
from woqfx.scheme import Rules
from woqfx.skeleton import put
from woqfx.source import ModuleSource, Source, open_source


def quantize(
    model: nn.Module | str | Path,
    *,
    algorithm: str = "rtn",
    dtype: str = "int4_clip",
    group_size: int = 32,
    symmetric: bool = True,
    scale_dtype: str = "fp16",
    double_quant: bool = False,
    compute_dtype: str = "fp32",
    outlier_threshold: float = 0.0,
    backend: str = "torch_cpu",
    rules: Rules = (),
    options: Mapping[str, Any] | None = None,
    calibration: Data = "python-docs",
    samples: int = 128,
    seq_len: int = 512,
    calibration_seed: int = 0,
    column: str | None = None,
    split: str | None = None,
    tokenizer: Any = None,
    propagate: Propagate = "quantized",
    target_bits: float | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = "auto",
) -> nn.Module:
    """Quantize a model's weights, and return the model ready to run.

    `model` is a live module (the same object comes back, its weights replaced), a folder, a `.gguf` file, or
    a name on the Hugging Face Hub. With `out`, a checkpoint is written there as well; from a folder it is
    streamed, one tensor at a time, and a killed run goes on when it is called again.

    Linear layers and stacks of experts are quantized; embeddings and the output head are kept, and so is
    whatever `rules` say: `"*.down_proj=int8"`, `("model.layers.0.*", "keep")`, the last match wins.
    `algorithm` is a name, or several: "awq+gptq" takes the one's rescaling and the other's rounding. `options` are the
    algorithm's own; where two parts have one of the same name, it is written "gptq.name".

    An algorithm that looks at data sees `samples` sequences of `seq_len` tokens. `calibration` is the name of a set, a
    file, a set on the Hub, or the data themselves (see `woqfx.calibration.CalibrationRequest`, which also tells of
    `column`, `split` and `tokenizer`); `calibration_seed` decides which texts are taken. `propagate` is what each block
    sees of those before it: "quantized" for what they give once they are quantized, or "float".

    With `target_bits`, weights take so many bits each in the mean, scales included: on calibration data it is measured
    which layers need more and which can do with less, and each gets a dtype and group size of its own.

    `progress` is "auto" (a bar on a terminal), "bar", "json" or "none".

    Raises `PlanError` with every problem at once, before any work is done; `SourceError`, `WeightError` and
    `OutputError` for what only shows on the way.
    """
    source = open_source(model)
    plan = plan_within(
        source,
        Request.read(
            algorithm=algorithm,
            backend=backend,
            rules=rules,
            options=options,
            calibration=CalibrationRequest(calibration, samples, seq_len, calibration_seed, column, split, tokenizer),
            propagate=propagate,
            dtype=dtype,
            group_size=group_size,
            symmetric=symmetric,
            scale_dtype=scale_dtype,
            double_quant=double_quant,
            compute_dtype=compute_dtype,
            outlier_threshold=outlier_threshold,
        ),
        target_bits,
    )
    plan.check()
    if isinstance(source, ModuleSource):
        return _quantize_module(source, plan, out, overwrite=overwrite, progress=progress)
    if out is None:
        return _quantize_into_memory(source, plan, progress)
    quantize_to(source, plan, out, overwrite=overwrite, progress=progress)
    return load(out, backend=backend)


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
    source: ModuleSource, plan: Plan, out: str | Path | None, *, overwrite: bool, progress: Progress
) -> nn.Module:
    """All weights are quantized and packed before the first is replaced: an error leaves the module as it was."""
    calibration = calibrate(source, plan)
    steps = (
        engine.quantize_in_memory(source, plan, calibration)
        if out is None
        else engine.write_checkpoint(source, plan, Path(out), calibration=calibration, overwrite=overwrite)
    )
    with showing(progress):
        done = {step.name: step for step in steps}
    model = source.skeleton
    record = _provenance(source, plan, calibration, done)
    backend = registry().backend(plan.request.backend)
    packed = {
        name: backend.pack(step.result, plan.quantized[name].float_dtype)
        for name, step in done.items()
        if isinstance(step.result, QTensor)
    }
    for name, step in done.items():
        if isinstance(step.result, QTensor):
            install(model, name, packed[name])
        elif step.changed:
            put(model, name, step.result, source.label)
    record.attach(model)
    return model


def _quantize_into_memory(source: Source, plan: Plan, progress: Progress) -> nn.Module:
    calibration = calibrate(source, plan)
    with showing(progress):
        done = {step.name: step for step in engine.quantize_in_memory(source, plan, calibration)}
    model = assemble_quantized(source, plan, done.values())
    origin = _provenance(source, plan, calibration, done)
    adopt_generation(model, origin.sidecars, source.label)
    origin.attach(model)
    return model


def _provenance(source: Source, plan: Plan, calibration: Calibration | None, done: Mapping[str, Done]) -> Provenance:
    errors = {name: step.error for name, step in done.items() if name in plan.quantized}
    request = engine.describe_request(plan, calibration)
    files = {**source.sidecars(), **report_file(request, {name: step.facts() for name, step in done.items()})}
    return Provenance(request, errors, source.config(), dict(source.aliases), files)


def plan(
    model: nn.Module | str | Path,
    *,
    algorithm: str = "rtn",
    dtype: str = "int4_clip",
    group_size: int = 32,
    symmetric: bool = True,
    scale_dtype: str = "fp16",
    double_quant: bool = False,
    compute_dtype: str = "fp32",
    outlier_threshold: float = 0.0,
    backend: str = "torch_cpu",
    rules: Rules = (),
    options: Mapping[str, Any] | None = None,
    calibration: Data = "python-docs",
    samples: int = 128,
    seq_len: int = 512,
    calibration_seed: int = 0,
    column: str | None = None,
    split: str | None = None,
    tokenizer: Any = None,
    propagate: Propagate = "quantized",
    target_bits: float | None = None,
) -> Plan:
    """What `quantize` would do with the same arguments: each weight's scheme, size and kernel, and every problem.

    Reads headers only, whatever the model's size; with `target_bits`, it goes through the whole model.
    """
    request = Request.read(
        algorithm=algorithm,
        backend=backend,
        rules=rules,
        options=options,
        calibration=CalibrationRequest(calibration, samples, seq_len, calibration_seed, column, split, tokenizer),
        propagate=propagate,
        dtype=dtype,
        group_size=group_size,
        symmetric=symmetric,
        scale_dtype=scale_dtype,
        double_quant=double_quant,
        compute_dtype=compute_dtype,
        outlier_threshold=outlier_threshold,
    )
    return plan_within(open_source(model), request, target_bits)


def load(path: str | Path, *, backend: str = "torch_cpu", model: nn.Module | None = None) -> nn.Module:
    """Load a checkpoint, ready to run: `model.generate(...)` for a language model.

    `model` is the module tree for a checkpoint that was made from a module transformers does not know; its
    weights are replaced, and it is returned. Raises `CheckpointError`, or `UnfinishedError` for a run that
    was stopped, and `PlanError` if the backend cannot run the checkpoint.
    """
    stored = open_checkpoint(Path(path))
    loaded = load_model(stored, registry().backend(backend), model)
    if isinstance(stored, Checkpoint):
        origin = stored.provenance()
        adopt_generation(loaded, origin.sidecars, stored.label)
        origin.attach(loaded)
    return loaded


def save(model: nn.Module, out: str | Path, *, overwrite: bool = False) -> None:
    """Write a quantized model as a checkpoint: unless it was changed, the same bytes as those it was loaded from."""
    saving.save(model, Path(out), overwrite=overwrite)


def register(plugin: Any, name: str) -> None:
    """Add a plugin of this process, without a package: an object or module with `@woqfx.hookimpl` functions."""
    registry().register(plugin, name)


def unregister(name: str) -> None:
    """Take out a plugin that `register` added."""
    registry().unregister(name)
