"""The loop: reads a tensor, has it quantized, and hands it on, with a few in progress at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

import woqfx
from woqfx.algorithm import Algorithm, Layer, read_options
from woqfx.checkpoint import small_files
from woqfx.errors import OutputError, PluginError, SourceError, WoqfxError
from woqfx.format import StoredWeight
from woqfx.layers import LayerInfo
from woqfx.manifest import FileFacts, Manifest, natural
from woqfx.planning import IN_PROGRESS, LayerPlan, Plan
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.quality import relative_error
from woqfx.reporting import reporting
from woqfx.source import Source
from woqfx.writer import SHARD_BYTES, Parts, open_writer


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


def quantize_tensors(source: Source, plan: Plan, names: list[str], workers: int = 1) -> Iterator[Done]:
    """Quantize or pass on these tensors of `source`, in order, while the caller does something with those before.

    At most `workers` threads each work on a tensor of their own: as many as `IN_PROGRESS` bytes hold, or one.
    """
    sizes = {name: prod(info.shape) * info.dtype.itemsize for name, info in source.tensors.items()}
    algorithm = _algorithm(plan)

    def work(name: str) -> Done:
        tensor = source.read(name)
        planned = plan.quantized.get(name)
        return Done(name, tensor, None) if planned is None else quantize_one(algorithm, planned, tensor)

    pool = ThreadPoolExecutor(workers, "woqfx-worker")
    try:
        ahead: deque[tuple[str, Future[Done]]] = deque()
        for name in names:
            while len(ahead) > workers or (ahead and sizes[name] + sum(sizes[one] for one, _ in ahead) > IN_PROGRESS):
                yield ahead.popleft()[1].result()
            ahead.append((name, pool.submit(work, name)))
        while ahead:
            yield ahead.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


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
    source: Source,
    plan: Plan,
    out: Path,
    *,
    overwrite: bool = False,
    workers: int = 1,
    shard_bytes: int = SHARD_BYTES,
) -> Iterator[Done]:
    """Quantize `source` into the folder `out`, going on with a killed run of the same request.

    Yields each tensor after it is written; the output is complete when the iterator ends. Raises `OutputError`,
    `SourceError` and `WeightError`; what was committed until then is kept, and a checkpoint that was there before
    stays as it was.
    """
    _refuse_inside(out, source)
    fingerprint = source.fingerprint()
    run = _describe_run(source, plan, shard_bytes, fingerprint)
    items = _items(source, plan)
    writer = open_writer(out, items, run, overwrite=overwrite, resumable=source.resumable, shard_bytes=shard_bytes)
    left = [name for name in items if name not in writer.facts]
    with closing(writer), reporting(source, plan, out, len(items), earlier=writer.facts) as report:
        for done in quantize_tensors(source, plan, left, workers):
            committed = writer.write(done.name, done.parts(), done.error)
            report.done(done.name, done.error)
            if committed:
                report.committed(writer.nbytes)
            yield done
        if left and source.fingerprint() != fingerprint:
            raise SourceError(f"{source.label} was changed while it was read: start again with overwrite=True")
        errors = dict(writer.facts)
        writer.finish(
            lambda: small_files(source.config(), plan.request.to_json(), source.sidecars()),
            lambda files: _manifest(source, plan, files, errors),
        )


def quantize_in_memory(source: Source, plan: Plan) -> Iterator[Done]:
    """Quantize all of `source` without writing anything."""
    names = sorted(source.tensors, key=natural)
    with reporting(source, plan, None, len(names), earlier=()) as report:
        for done in quantize_tensors(source, plan, names):
            report.done(done.name, done.error)
            yield done


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


def _describe_run(source: Source, plan: Plan, shard_bytes: int, fingerprint: str) -> dict[str, Any]:
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
        "source": {"name": source.label, "fingerprint": fingerprint if source.resumable else "live"},
        "request": plan.request.to_json(),
        "shard_bytes": shard_bytes,
    }


def _refuse_inside(out: Path, source: Source) -> None:
    """Refuse to write into the model that is read."""
    origin = Path(source.label).resolve()
    if source.resumable and origin in (out.resolve(), *out.resolve().parents):
        raise OutputError(f"{out} is inside the model that is read, {source.label}: choose another folder")


def _manifest(
    source: Source, plan: Plan, files: Mapping[str, FileFacts], errors: Mapping[str, float | None]
) -> Manifest:
    weights = {
        name: StoredWeight(planned.scheme, planned.layer.shape, planned.float_dtype)
        for name, planned in plan.quantized.items()
        if planned.scheme is not None
    }
    return Manifest(plan.request.to_json(), weights, errors, source.aliases, files)
