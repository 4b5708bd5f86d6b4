"""The loop: reads a tensor, has it quantized, and hands it on, with a few in progress at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from math import prod
from pathlib import Path
from typing import Any

import torch

import woqfx
from woqfx.alone import quantize_one
from woqfx.blocks.activations import Store
from woqfx.blocks.boundary import check_boundaries, find_boundaries
from woqfx.blocks.calibrated import CalibratedRun
from woqfx.blocks.composition import Composition, read_composition
from woqfx.blocks.report import blocks_of, report_file, write_timings
from woqfx.calibration import Calibration
from woqfx.disk.checkpoint import small_files
from woqfx.disk.manifest import FileFacts, Manifest, natural
from woqfx.disk.output import refuse_inside, refuse_taken
from woqfx.disk.shards import SHARD_BYTES, Parts, safetensors_shards
from woqfx.disk.writer import open_writer
from woqfx.done import Done
from woqfx.errors import SourceError
from woqfx.format import StoredWeight
from woqfx.memory import single_threaded
from woqfx.planned import Plan
from woqfx.planning import IN_PROGRESS
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.reporting import Report, reporting
from woqfx.source import Source

#: Bytes in progress where there is no disk to wait for: enough for the next weight to be made while one is packed.
_AHEAD_IN_MEMORY = 32 << 20


def quantize_tensors(
    source: Source, plan: Plan, names: list[str], workers: int = 1, in_progress: int | None = None
) -> Iterator[Done]:
    """Quantize or pass on these tensors of `source`, in order, while the caller does something with those before.

    At most `workers` threads each work on a tensor of their own. They run ahead by as many tensors as `in_progress`
    bytes hold, or one: so they have something to do while the caller waits for the disk.
    """
    limit = IN_PROGRESS if in_progress is None else in_progress
    sizes = {name: prod(info.shape) * info.dtype.itemsize for name, info in source.tensors.items()}
    rounder = _composition(plan).rounder

    def work(name: str) -> Done:
        tensor = source.read(name)
        planned = plan.quantized.get(name)
        return Done(name, tensor, None) if planned is None else quantize_one(rounder, planned, tensor)

    pool = ThreadPoolExecutor(workers, "woqfx-worker")
    try:
        ahead: deque[tuple[str, Future[Done]]] = deque()
        for name in names:
            while ahead and sizes[name] + sum(sizes[one] for one, _ in ahead) > limit:
                yield ahead.popleft()[1].result()
            ahead.append((name, pool.submit(work, name)))
        while ahead:
            yield ahead.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _composition(plan: Plan) -> Composition:
    return read_composition(plan.request.algorithm, plan.request.options)


def quantize_all(
    source: Source,
    plan: Plan,
    calibration: Calibration | None,
    store: Store,
    left: Collection[str],
    earlier: Mapping[str, Any],
    report: Report,
    workers: int,
    in_progress: int | None = None,
) -> Iterator[Done]:
    """Go through the tensors that are `left`, in the order of `_order`; `earlier` holds the facts of the others."""
    outside = [name for name in left if not any(block.holds(name) for block in plan.blocks)]
    yield from quantize_tensors(source, plan, outside, workers, in_progress)
    if calibration is None or len(outside) == len(left):
        return
    workers = max(workers, torch.get_num_threads())
    with single_threaded():
        run = CalibratedRun(source, plan, _composition(plan), calibration, store, workers)
        done = find_boundaries(plan.blocks, earlier)
        run.resume(done)
        for block in plan.blocks:
            if block not in [boundary.block for boundary in done]:
                report.block_started(block.name)
                # Of a block that was begun, what is written is made again, and is the same.
                yield from (done for done in run.quantize(block) if done.name in left)


def check_output(source: Source, out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that `write_checkpoint` would refuse, before anything expensive. Raises `OutputError`."""
    if source.resumable:
        refuse_inside(out, Path(source.label))
    refuse_taken(out, replace=overwrite)


def write_checkpoint(
    source: Source,
    plan: Plan,
    out: Path,
    *,
    calibration: Calibration | None = None,
    overwrite: bool = False,
    workers: int = 1,
    shard_bytes: int = SHARD_BYTES,
) -> Iterator[Done]:
    """Quantize `source` into the folder `out`, going on with a killed run of the same request.

    `calibration` is what `plan.request.calibration` asks for, if it does.

    Yields each tensor after it is written; the output is complete when the iterator ends. Raises `OutputError`,
    `SourceError` and `WeightError`; what was committed until then is kept, and a checkpoint that was there before
    stays as it was.
    """
    if source.resumable:
        refuse_inside(out, Path(source.label))
    fingerprint = source.fingerprint()
    request = describe_request(plan, calibration)
    run = _describe_run(source, plan, request, shard_bytes, fingerprint)
    items = _items(source, plan)
    writer = open_writer(
        out,
        safetensors_shards(items, shard_bytes),
        run,
        overwrite=overwrite,
        resumable=source.resumable,
        check=lambda writer: check_boundaries(writer.work, find_boundaries(plan.blocks, writer.facts)),
    )
    left = [name for name in items if name not in writer.facts]
    with (
        closing(writer),
        closing(Store(writer.work)) as store,
        _reporting(source, plan, out, len(items), writer.facts) as report,
    ):
        for done in quantize_all(source, plan, calibration, store, left, dict(writer.facts), report, workers):
            committed = writer.write(done.name, done.parts(), done.facts(), commit=done.block is not None)
            _report(report, done)
            if committed:
                report.committed(writer.nbytes)
            yield done
        if left and source.fingerprint() != fingerprint:
            raise SourceError(f"{source.label} was changed while it was read: start again with overwrite=True")
        facts = dict(writer.facts)
        write_timings(writer.work, out, blocks_of(facts.values()))
        writer.finish(
            lambda: small_files(source.config(), request, source.sidecars()) | report_file(request, facts),
            lambda files: _manifest(source, plan, request, files, {name: one["error"] for name, one in facts.items()}),
        )


def quantize_in_memory(source: Source, plan: Plan, calibration: Calibration | None = None) -> Iterator[Done]:
    """Quantize all of `source` without writing anything."""
    names = _order(source, plan)
    with _reporting(source, plan, None, len(names), ()) as report, closing(Store(None)) as store:
        for done in quantize_all(source, plan, calibration, store, names, {}, report, 1, _AHEAD_IN_MEMORY):
            _report(report, done)
            yield done


def _reporting(
    source: Source, plan: Plan, out: Path | None, tensors: int, earlier: Collection[str]
) -> AbstractContextManager[Report]:
    weights = {name: planned.weights for name, planned in plan.quantized.items()}
    blocks = [block.name for block in plan.blocks]
    return reporting(source.label, weights, out, tensors, earlier=earlier, blocks=blocks)


def _report(report: Report, done: Done) -> None:
    report.done(done.name, done.error)
    if done.block is not None:
        report.block_done(done.block)


def describe_request(plan: Plan, calibration: Calibration | None) -> dict[str, Any]:
    """The request as manifests hold it: with what the calibration data turned out to be."""
    request = plan.request.to_json()
    if calibration is not None:
        request["calibration"] |= {"description": calibration.description, "sha256": calibration.digest}
    return request


def _order(source: Source, plan: Plan) -> list[str]:
    """The order in which tensors are worked on and written: those outside the blocks first, then block by block."""
    place = {block.name: number for number, block in enumerate(plan.blocks)}

    def key(name: str) -> tuple[int, Any]:
        block = next((block for block in plan.blocks if block.holds(name)), None)
        return (-1 if block is None else place[block.name]), natural(name)

    return sorted(source.tensors, key=key)


def _items(source: Source, plan: Plan) -> dict[str, Parts]:
    """What will be written for each tensor of the source."""
    items: dict[str, Parts] = {}
    ordered = _composition(plan).rounder.ordered
    for name in _order(source, plan):
        info, planned = source.tensors[name], plan.quantized.get(name)
        if planned is None or planned.scheme is None:
            items[name] = {name: (info.dtype, info.shape)}
        else:
            grid, inside = registry().dtype(planned.scheme.dtype), any(block.holds(name) for block in plan.blocks)
            specs = QTensor.specs(grid, planned.scheme, planned.layer.shape, ordered=ordered and inside)
            items[name] = {f"{name}.{suffix}": spec for suffix, spec in specs.items()}
    return items


def _describe_run(
    source: Source, plan: Plan, request: Mapping[str, Any], shard_bytes: int, fingerprint: str
) -> dict[str, Any]:
    """What must be the same for a run to go on where another one stopped."""
    schemes = {planned.scheme for planned in plan.quantized.values() if planned.scheme}
    providers = {
        registry().provider(kind, name).title
        for kind, names in (
            ("dtype", {s.dtype for s in schemes}),
            ("algorithm", {part.name for part in _composition(plan).parts}),
        )
        for name in names
    }
    return {
        "woqfx": woqfx.__version__,
        "plugins": sorted(providers),
        "source": {"name": source.label, "fingerprint": fingerprint if source.resumable else "live"},
        "request": dict(request),
        "shard_bytes": shard_bytes,
    }


def _manifest(
    source: Source,
    plan: Plan,
    request: Mapping[str, Any],
    files: Mapping[str, FileFacts],
    errors: Mapping[str, float | None],
) -> Manifest:
    weights = {
        name: StoredWeight(planned.scheme, planned.layer.shape, planned.float_dtype)
        for name, planned in plan.quantized.items()
        if planned.scheme is not None
    }
    return Manifest(request, weights, errors, source.aliases, files)
