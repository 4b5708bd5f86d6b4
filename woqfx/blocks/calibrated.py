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
from woqfx.blocks.block import Block, Feed, first_tensor
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
from woqfx.planned import Plan
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
        # What the original gives beside it: the same, where blocks see what float ones give.
        both = composition.corrects_earlier and plan.request.propagate == "quantized"
        self._original = Performance() if both else None
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
                if self._original is not None:
                    self._original.add(boundary.block, boundary.record["original"], shelf)
                if boundary is wanted[-1]:
                    self._feeds = {
                        kind: tuple(feed_from_json(feed, shelf) for feed in feeds)
                        for kind, feeds in record["feeds"].items()
                    }

    def quantize(self, info: BlockInfo) -> Iterator[Done]:
        """Quantize the next block, and yield each of its tensors; what only it needed is let go of behind the last."""
        start = time.monotonic()
        calls = self._capture(info, self._played)
        originals = None if self._original is None else self._capture(info, self._original)
        self._conductor.release()
        if calls is None:
            yield from self._unreached(info)
            return
        loaded = self._load(info)
        bare = loaded.block(self._workers)
        targets = Targets(bare, calls, self._store)
        whole = replace(bare, calls=calls, targets=targets)
        block, probe = (replace(whole, calls=calls[part], targets=targets[part]) for part in (_DATA, _PROBE))
        last = info is self._plan.blocks[-1]
        shelf = self._shelf(info, calls, last)
        keep = Distinct(shelf)
        original = None
        if originals is not None and self._original is not None:
            original = self._give(info, replace(bare, calls=originals), {}, keep)
            self._original.add(info, original, shelf)
            block = replace(block, targets=_hidden(self._original, info, originals)[_DATA])
        kind = type(loaded.module).__qualname__
        work = BlockWork(loaded, block, probe, self._composition, self._feeds.get(kind, ()), self._surveyed)
        made, self._feeds[kind] = work.quantize(), work.feeds
        record: dict[str, Any] = {"name": info.name, "facts": made.facts, "given": None, "activations": None}
        spent: list[Shelf] = [shelf]
        if not last:
            weights = made.replacements() if self._plan.request.propagate == "quantized" else {}
            given = self._give(info, whole, weights, keep)
            feeds = {kind: [feed_to_json(feed, keep) for feed in found] for kind, found in self._feeds.items()}
            record |= {
                "given": given,
                "original": original,
                "feeds": feeds,
                "activations": shelf.commit() if isinstance(shelf, FileShelf) else None,
            }
            spent = self._played.add(info, given, shelf)
        record |= {"seconds": round(time.monotonic() - start, 3), "memory": peak_memory()}
        yield from self._results(info, loaded, made, record)
        temporary = [targets.shelf, calls.shelf] + ([] if originals is None else [originals.shelf])
        for one in (*spent, *temporary):
            self._store.discard(one)

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

    def _capture(self, info: BlockInfo, played: Performance) -> Calls | None:
        """How the model calls the block for each batch behind what was played; None if tokens do not reach it."""
        owned = {id(tensor): tensor for tensor in played.tensors()}
        calls: Calls | None = None
        for number, tokens in enumerate(self._batches):
            call = self._conductor.capture(info.name, tokens, number, played)
            if call is None:
                return None
            if calls is None:
                fresh = sum(tensor.nbytes for tensor in leaves((call.args, call.kwargs)) if id(tensor) not in owned)
                calls = Calls(self._store.shelf(fresh * len(self._batches)), owned)
            calls.add(call)
        return calls

    # -- after -----------------------------------------------------------------------------------

    def _shelf(self, info: BlockInfo, calls: Calls, last: bool) -> Shelf:
        """For what the block gives; behind the last block nobody asks for it again."""
        size = hidden_bytes(calls) * (1 if self._original is None else 2)
        return self._store.shelf(size) if last else self._store.lasting(f"activations-{info.name}", size)

    def _give(self, info: BlockInfo, block: Block, weights: Mapping[str, Tensor], keep: Distinct) -> list[Any]:
        """What the block gives with these weights for each of its calls, tensors kept."""
        outputs = in_order(block, lambda call: block.outputs(call, weights))
        return [describe(output, call, keep, info.name) for call, output in outputs]

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


def _hidden(played: Performance, info: BlockInfo, calls: Calls) -> list[Tensor]:
    """The hidden states that a finished block gave for each call."""
    return [
        first_tensor(played.play(info.name, number, (call.args, dict(call.kwargs))))
        for number, call in enumerate(calls)
    ]
