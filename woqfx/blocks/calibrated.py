"""A model's blocks, one after the other, by an algorithm that looks at data.

Only one block's weights are in memory, and the activations at its boundaries (`woqfx.blocks.activations` says where).
After each block what it gave is safe on disk, if the run can go on, so that a later run begins at the next block with
the very same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor

from woqfx.algorithm import Layer
from woqfx.alone import quantize_one
from woqfx.blocks.activations import FileShelf, Shelf, Store
from woqfx.blocks.block import Block, Feed
from woqfx.blocks.boundary import Boundary, feed_from_json, feed_to_json, needed
from woqfx.blocks.calls import Calls, Distinct, Targets, hidden_bytes, in_order
from woqfx.blocks.composition import Composition, blamed
from woqfx.blocks.conductor import Conductor, as_float
from woqfx.blocks.finding import BlockInfo
from woqfx.blocks.performance import Performance, describe
from woqfx.blocks.steps import BlockWork, Loaded, QuantizedBlock
from woqfx.blocks.survey import whole_model
from woqfx.blocks.trees import leaves
from woqfx.calibration import Calibration
from woqfx.disk.manifest import natural
from woqfx.done import Done
from woqfx.memory import peak_memory
from woqfx.planning import Plan
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.quality import relative_error
from woqfx.source import Source

#: Length of the sequence on which structure is looked at.
PROBE_TOKENS = 256

# Which of the calls are data, and which is the one on which structure is looked at.
_DATA, _PROBE = slice(None, -1), slice(-1, None)


class CalibratedRun:
    """Quantizes the blocks of a plan in order. `workers` threads each run one batch, or round one weight, at a time."""

    def __init__(
        self,
        source: Source,
        plan: Plan,
        composition: Composition,
        calibration: Calibration,
        store: Store,
        workers: int = 1,
    ) -> None:
        self._source, self._plan, self._composition = source, plan, composition
        # The last batch is the beginning of the first: what is only looked at, not summed over, is looked at there.
        self._batches = (*calibration.batches, calibration.batches[0][:1, :PROBE_TOKENS])
        self._store, self._workers = store, workers
        self._conductor = Conductor(source, plan.blocks)
        self._played = Performance()
        self._feeds: dict[str, tuple[Feed, ...]] = {}  # found in the last block of each class
        self._planned = {planned.layer.weight: planned for planned in plan.layers}

    def resume(self, boundaries: Sequence[Boundary]) -> None:
        """Take up what an earlier run left. Raises `CheckpointError` if it is not as it was."""
        wanted = needed(boundaries)
        for boundary in boundaries:
            if boundary.trees:
                record = boundary.record
                shelf = self._store.reopen(record["activations"]) if boundary in wanted else Shelf()
                self._played.add(boundary.block, boundary.trees, shelf)
                if boundary is wanted[-1]:
                    self._feeds = {
                        kind: tuple(feed_from_json(feed, shelf) for feed in feeds)
                        for kind, feeds in record["feeds"].items()
                    }

    def quantize(self, info: BlockInfo) -> Iterator[Done]:
        """Quantize the next block, and yield each of its tensors; what only it needed is let go of behind the last."""
        start = time.monotonic()
        calls = self._capture(info)
        self._conductor.release()
        if calls is None:
            yield from self._unreached(info)
            return
        loaded = self._load(info)
        block = loaded.block(self._workers)
        targets = Targets(block, calls, self._store)
        whole = replace(block, calls=calls, targets=targets)
        block, probe = (replace(block, calls=calls[part], targets=targets[part]) for part in (_DATA, _PROBE))
        kind = type(loaded.module).__qualname__
        work = BlockWork(loaded, block, probe, self._composition, self._feeds.get(kind, ()), self._surveyed)
        made, self._feeds[kind] = work.quantize(), work.feeds
        record: dict[str, Any] = {"name": info.name, "facts": made.facts, "given": None, "activations": None}
        spent: list[Shelf] = []
        if info is not self._plan.blocks[-1]:
            given, feeds, shelf = self._give(info, whole, made)
            record |= {
                "given": given,
                "feeds": feeds,
                "activations": shelf.commit() if isinstance(shelf, FileShelf) else None,
            }
            spent = self._played.add(info, given, shelf)
        record |= {"seconds": round(time.monotonic() - start, 3), "memory": peak_memory()}
        yield from self._results(info, loaded, made, record)
        for shelf in (*spent, targets.shelf, calls.shelf):
            self._store.discard(shelf)

    def _unreached(self, info: BlockInfo) -> Iterator[Done]:
        """The tensors of a block that tokens do not reach, such as one that looks at images."""
        names, rounder = self._names(info), self._composition.rounder
        record: dict[str, Any] = {"name": info.name, "facts": {"unreached": True}, "given": None, "activations": None}
        record |= {"seconds": 0.0, "memory": peak_memory()}
        for name in names:
            planned, tensor = self._plan.quantized.get(name), self._source.read(name)
            done = Done(name, tensor, None)
            if planned is not None:
                done = quantize_one(rounder, planned, tensor)
                if rounder.ordered and isinstance(done.result, QTensor):
                    done = replace(done, result=done.result.ordered())
            yield replace(done, block=record if name == names[-1] else None)

    def _names(self, info: BlockInfo) -> list[str]:
        """The block's tensors in the order in which they are written."""
        return sorted((name for name in self._source.tensors if info.holds(name)), key=natural)

    # -- before ----------------------------------------------------------------------------------

    @cached_property
    def _surveyed(self) -> dict[str, Mapping[str, Tensor]]:
        """What each part that looks at the whole model has found there, by the part's name."""
        parts = [part for part in self._composition.parts if part.surveys]
        if not parts:
            return {}
        model = whole_model(self._source, self._plan, self._batches, self._workers)
        found = {}
        for part in parts:
            with blamed(part, model.name):
                found[part.name] = part.survey(model)
        return found

    def _load(self, info: BlockInfo) -> Loaded:
        """The block's weights in float32."""
        module = self._conductor.modules[info.name]
        parameters, layers, kept, transposed = {}, {}, {}, set()
        for name, _ in module.named_parameters():
            stored = self._source.read(f"{info.name}.{name}")
            planned = self._planned.get(f"{info.name}.{name}")
            if planned is not None and planned.layer.transposed:
                transposed.add(name)
            weight = as_float(stored if planned is None else planned.layer.logical(stored))
            parameters[name] = weight
            if planned is not None and planned.scheme is not None:
                grid = registry().dtype(planned.scheme.dtype)
                layers[name] = Layer(planned.layer.name, weight, planned.scheme, grid)
            else:
                kept[name] = stored.dtype
        for name, buffer in module.named_buffers():
            if buffer.is_meta:
                owner, _, key = name.rpartition(".")
                module.get_submodule(owner)._buffers[key] = as_float(self._source.read(f"{info.name}.{name}"))
        return Loaded(info.name, module, parameters, layers, kept, frozenset(transposed))

    def _capture(self, info: BlockInfo) -> Calls | None:
        """How the model calls the block for each batch; None if tokens do not reach it."""
        owned = {id(tensor): tensor for tensor in self._played.tensors()}
        calls: Calls | None = None
        for number, tokens in enumerate(self._batches):
            call = self._conductor.capture(info.name, tokens, number, self._played)
            if call is None:
                return None
            if calls is None:
                fresh = sum(tensor.nbytes for tensor in leaves((call.args, call.kwargs)) if id(tensor) not in owned)
                calls = Calls(self._store.shelf(fresh * len(self._batches)), owned)
            calls.add(call)
        return calls

    # -- after -----------------------------------------------------------------------------------

    def _give(self, info: BlockInfo, block: Block, made: QuantizedBlock) -> tuple[list[Any], dict[str, Any], Shelf]:
        """What the block gives to those behind it, the feeds that were found so far, and the shelf with all tensors."""
        weights = made.replacements() if self._plan.request.propagate == "quantized" else {}
        shelf = self._store.lasting(f"activations-{info.name}", hidden_bytes(block.calls))
        keep = Distinct(shelf)
        given = [
            describe(output, call, keep, info.name)
            for call, output in in_order(block, lambda call: block.outputs(call, weights))
        ]
        feeds = {kind: [feed_to_json(feed, keep) for feed in found] for kind, found in self._feeds.items()}
        return given, feeds, shelf

    def _results(
        self, info: BlockInfo, loaded: Loaded, made: QuantizedBlock, record: Mapping[str, Any]
    ) -> Iterator[Done]:
        names = self._names(info)
        for name in names:
            own = name.removeprefix(f"{info.name}.")
            last = record if name == names[-1] else None
            if own in made.weights:
                q = made.weights[own]
                yield Done(name, q, relative_error(made.rescaled[own], q), last)
            elif own in made.changed:
                tensor = made.changed[own].to(loaded.kept[own])
                yield Done(
                    name, (tensor.T if own in loaded.transposed else tensor).contiguous(), None, last, changed=True
                )
            else:
                yield Done(name, self._source.read(name), None, last)
