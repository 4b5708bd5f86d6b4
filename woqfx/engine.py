"""The loop: reads one tensor at a time, has it quantized, and hands it on."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import woqfx
from woqfx import events
from woqfx.algorithm import Algorithm, Layer, read_options
from woqfx.checkpoint import JOURNAL, MANIFEST, WORK, manifest, natural, small_files
from woqfx.errors import OutputError, PluginError, WoqfxError
from woqfx.format import StoredWeight
from woqfx.journal import Journal
from woqfx.layers import LayerInfo
from woqfx.planning import LayerPlan, Plan
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.quality import relative_error
from woqfx.source import Source
from woqfx.writer import Parts, Writer, discard

#: The largest weight file to write; larger models get several.
SHARD_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Done:
    """A parameter that has been worked on: quantized, with its relative error, or kept as it was."""

    name: str
    result: QTensor | Tensor
    error: float | None

    def parts(self) -> Mapping[str, Tensor]:
        """What to write, by stored name."""
        if isinstance(self.result, QTensor):
            return {f"{self.name}.{suffix}": part for suffix, part in self.result.tensors().items()}
        return {self.name: self.result}


def quantize_tensors(source: Source, plan: Plan, names: list[str]) -> Iterator[Done]:
    """Quantize or pass on these tensors of `source`, in order; the next is read while one is worked on."""
    algorithm = _algorithm(plan)
    with ThreadPoolExecutor(1, "woqfx-read") as reader:
        ahead: Future[Tensor] | None = None
        for place, name in enumerate(names):
            tensor = ahead.result() if ahead else source.read(name)
            ahead = reader.submit(source.read, names[place + 1]) if place + 1 < len(names) else None
            planned = plan.quantized.get(name)
            yield Done(name, tensor, None) if planned is None else quantize_one(algorithm, planned, tensor)


def quantize_one(algorithm: Algorithm, planned: LayerPlan, stored: Tensor) -> Done:
    """Quantize one weight, and check what the algorithm made of it."""
    assert planned.scheme is not None
    layer, scheme = planned.layer, planned.scheme
    weight = layer.logical(stored)
    dtype = registry().dtype(scheme.dtype)
    try:
        q = algorithm.round(Layer(layer.name, weight, scheme, dtype))
    except WoqfxError:
        raise
    except Exception as error:
        who = registry().provider("algorithm", algorithm.name).title
        raise PluginError(f"{layer.name}: algorithm {algorithm.name} ({who}) failed: {error!r}") from error
    _check_result(algorithm, layer, planned, q)
    return Done(layer.weight, q, relative_error(weight, q))


def _check_result(algorithm: Algorithm, layer: LayerInfo, planned: LayerPlan, q: Any) -> None:
    who = f"{layer.name}: algorithm {algorithm.name} ({registry().provider('algorithm', algorithm.name).title})"
    if not isinstance(q, QTensor):
        raise PluginError(f"{who} returned {type(q).__name__}, not a QTensor")
    if q.scheme != planned.scheme or q.shape != layer.shape:
        raise PluginError(f"{who} returned {list(q.shape)} by {q.scheme}, where {list(layer.shape)} was planned")
    specs = QTensor.specs(q.dtype, q.scheme, q.shape, ordered=q.order is not None)
    found = {suffix: (part.dtype, tuple(part.shape)) for suffix, part in q.tensors().items()}
    if found != specs:
        raise PluginError(f"{who} returned parts {found}, where its scheme has {specs}")
    q.check(who)


def _algorithm(plan: Plan) -> Algorithm:
    kind = registry().algorithm(plan.request.algorithm)
    return kind(read_options(kind, plan.request.options))


def write_checkpoint(
    source: Source, plan: Plan, out: Path, *, overwrite: bool = False, shard_bytes: int = SHARD_BYTES
) -> Iterator[Done]:
    """Quantize `source` into the folder `out`, going on with a killed run of the same request.

    Yields each tensor after it is written; the output is complete when the iterator ends.
    """
    run = _describe_run(source, plan, shard_bytes)
    _prepare(out, source, run, overwrite=overwrite)
    items = _items(source, plan)
    report = _Reporter(source, plan, str(out), len(items))
    writer = Writer(out, items, run, shard_bytes)
    try:
        left = [name for name in items if name not in writer.facts]
        report.started(writer.facts)
        for done in quantize_tensors(source, plan, left):
            committed = writer.write(done.name, done.parts(), done.error)
            report.done(done)
            if committed:
                report.committed(writer.written)
            yield done
        errors = dict(writer.facts)
        writer.finish(lambda: _sidecars(source, plan), lambda files: _manifest(source, plan, files, errors))
        report.finished()
    except BaseException as error:
        report.failed(error)
        raise
    finally:
        writer.close()


def quantize_in_memory(source: Source, plan: Plan) -> Iterator[Done]:
    """Quantize all of `source` without writing anything."""
    names = sorted(source.tensors, key=natural)
    report = _Reporter(source, plan, None, len(names))
    try:
        report.started(())
        for done in quantize_tensors(source, plan, names):
            report.done(done)
            yield done
        report.finished()
    except BaseException as error:
        report.failed(error)
        raise


def _items(source: Source, plan: Plan) -> dict[str, Parts]:
    """What will be written for each tensor of the source."""
    items: dict[str, Parts] = {}
    for name in sorted(source.tensors, key=natural):
        info, planned = source.tensors[name], plan.quantized.get(name)
        if planned is None or planned.scheme is None:
            items[name] = {name: (info.dtype, info.shape)}
        else:
            specs = QTensor.specs(registry().dtype(planned.scheme.dtype), planned.scheme, planned.layer.shape)
            items[name] = {f"{name}.{suffix}": spec for suffix, spec in specs.items()}
    return items


def _describe_run(source: Source, plan: Plan, shard_bytes: int) -> dict[str, Any]:
    """What must be the same for a run to go on where another one stopped."""
    schemes = {planned.scheme for planned in plan.quantized.values() if planned.scheme}
    providers = {
        registry().provider(kind, name).title
        for kind, names in (("dtype", {s.dtype for s in schemes}), ("algorithm", {plan.request.algorithm}))
        for name in names
    }
    return {
        "woqfx": woqfx.__version__,
        "plugins": sorted(providers),
        "source": {"name": source.label, "fingerprint": source.fingerprint() if source.resumable else "live"},
        "request": plan.request.to_json(),
        "shard_bytes": shard_bytes,
    }


def _prepare(out: Path, source: Source, run: Mapping[str, Any], *, overwrite: bool) -> None:
    """Refuse to write into the model that is read, and what `check_output` refuses."""
    origin = Path(source.label)
    if source.resumable and origin.resolve() in (out.resolve(), *out.resolve().parents):
        raise OutputError(f"{out} is inside the model that is read, {origin}: choose another folder")
    check_output(out, run, overwrite=overwrite, resumable=source.resumable)


def check_output(out: Path, run: Mapping[str, Any], *, overwrite: bool, resumable: bool) -> None:
    """Refuse an output folder whose content would be lost; clear away an unfinished run that is to be lost."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file: give a folder")
    unfinished = (out / WORK).is_dir()
    finished = (out / MANIFEST).exists()
    if finished and not unfinished and not overwrite:
        raise OutputError(
            f"{out} holds a finished checkpoint: pass overwrite=True (--overwrite) or choose another folder"
        )
    if out.is_dir() and not unfinished and not finished and any(out.iterdir()):
        raise OutputError(f"{out} holds other files: choose an empty or a new folder")
    if unfinished:
        earlier = Journal.peek(out / WORK / JOURNAL)
        same = earlier is not None and earlier.run == json.loads(json.dumps(run))
        if (overwrite and not same) or (same and not resumable):
            discard(out)


def _sidecars(source: Source, plan: Plan) -> dict[str, bytes]:
    return small_files(source.config(), plan.request.to_json(), source.sidecars())


def _manifest(source: Source, plan: Plan, files: Any, errors: Mapping[str, float | None]) -> bytes:
    weights = {
        name: StoredWeight(planned.scheme, planned.layer.shape, planned.float_dtype)
        for name, planned in plan.quantized.items()
        if planned.scheme is not None
    }
    return manifest(plan.request.to_json(), weights, errors, source.aliases, files)


class _Reporter:
    """Turns progress into events."""

    def __init__(self, source: Source, plan: Plan, output: str | None, tensors: int) -> None:
        self.run = uuid.uuid4().hex[:8]
        self.source, self.plan, self.output, self.tensors = source, plan, output, tensors
        self.count = 0
        self.start = self.last = time.monotonic()

    def started(self, earlier: Collection[str]) -> None:
        """`earlier` are the tensors that a killed run has done."""
        self.count = len(earlier)
        weights = {name: planned.weights for name, planned in self.plan.quantized.items()}
        resumed = sum(weights.get(name, 0) for name in earlier)
        registry().emit(
            events.RunStarted(
                self.run, self.source.label, self.output, self.tensors, self.count, sum(weights.values()), resumed
            )
        )

    def done(self, done: Done) -> None:
        self.count += 1
        now = time.monotonic()
        planned = self.plan.quantized.get(done.name)
        weights = planned.weights if planned else 0
        registry().emit(
            events.TensorDone(self.run, done.name, self.count, self.tensors, weights, now - self.last, done.error)
        )
        self.last = now

    def committed(self, written: int) -> None:
        registry().emit(events.Committed(self.run, self.count, written))

    def finished(self) -> None:
        registry().emit(events.RunFinished(self.run, self.output, time.monotonic() - self.start))

    def failed(self, error: BaseException) -> None:
        registry().emit(events.RunFailed(self.run, f"{type(error).__name__}: {error}"))
