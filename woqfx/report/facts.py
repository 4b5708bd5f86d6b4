"""What a checkpoint tells of how it was made, read from its folder, which may be hostile: docs/report.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from woqfx.blocks.report import TIMINGS, VERSION
from woqfx.disk.manifest import REPORT, short
from woqfx.errors import CheckpointError, SourceError
from woqfx.inspection import Inspection, UnfinishedRun, inspect
from woqfx.source.files import ModelFolder

MAX_REPORT = 256 << 20  # bytes; a block of a large mixture of experts takes about a megabyte

#: The steps of a block, in their order.
STEPS = ("nearest", "transform", "round", "refine")


@dataclass(frozen=True)
class FeedFacts:
    """One rescaling that was tried: what the algorithm told of it, and why it was not used if it was not."""

    name: str
    used: bool
    reason: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class ExpertFacts:
    """One expert of a stack: how many tokens it saw, and why it was rounded without them if it was."""

    tokens: int
    fallback: str


@dataclass(frozen=True)
class LayerFacts:
    """One weight of a block: its relative squared errors by step, and what the algorithm told."""

    weight_error: Mapping[str, float]
    output_error: Mapping[str, float]
    tokens: int | None
    notes: Mapping[str, Any]
    experts: tuple[ExpertFacts, ...] = ()


@dataclass(frozen=True)
class BlockFacts:
    """One block: the relative squared error of its output by step, its layers by name, and what it cost.

    `seconds` and `memory` (bytes) are None if the folder does not say.
    """

    name: str
    reached: bool
    error: Mapping[str, float]
    feeds: tuple[FeedFacts, ...]
    layers: Mapping[str, LayerFacts]
    notes: Mapping[str, Any]
    seconds: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Report:
    """A checkpoint: its weights, and, if its algorithm looked at data, its blocks in the order of their work."""

    checkpoint: Inspection
    request: Mapping[str, Any]
    blocks: tuple[BlockFacts, ...]
    raw: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The numbers as a JSON object: those of `woqfx inspect --json`, and the blocks with their costs."""
        costs = {block.name: {"seconds": block.seconds, "memory": block.memory} for block in self.blocks}
        return {
            "checkpoint": self.checkpoint.to_json(),
            "request": dict(self.request),
            "blocks": [block | costs[block["name"]] for block in self.raw.get("blocks", ())],
        }


def read_report(path: str | Path, backend: str = "torch_cpu") -> Report:
    """Read what a checkpoint's folder tells. Raises `CheckpointError`, also for the folder of an unfinished run."""
    found = inspect(path, backend)
    if isinstance(found, UnfinishedRun):
        raise CheckpointError(f"{path} holds a run that was stopped: finish it first (woqfx inspect says how)")
    try:
        folder = ModelFolder(path)
        told = folder.read_json(REPORT, MAX_REPORT) or {}
        times = folder.read_json(TIMINGS, MAX_REPORT) or {}
    except SourceError as error:
        raise CheckpointError(str(error)) from error
    if not told:
        return Report(found, found.request, ())
    reader = _Reader(found.path / REPORT)
    reader.version(told.get("woqfx_report"))
    costs = _Reader(found.path / TIMINGS).costs(times) if times else {}
    return Report(
        found,
        reader.mapping(told.get("request", {}), "request"),
        tuple(reader.block(block, costs) for block in reader.listed(told.get("blocks", []), "blocks")),
        told,
    )


class _Reader:
    """Checks a parsed file piece by piece; a message names the file and what was found in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def bad(self, what: str, found: Any) -> CheckpointError:
        return CheckpointError(f"{self.path} cannot be used: {what} is {short(found)}; fetch it again, or delete it")

    def version(self, found: Any) -> None:
        if type(found) is not int or found != VERSION:
            raise self.bad("its version", found)

    def mapping(self, found: Any, what: str) -> Mapping[str, Any]:
        if not isinstance(found, dict):
            raise self.bad(what, found)
        return found

    def listed(self, found: Any, what: str) -> list[Any]:
        if not isinstance(found, list):
            raise self.bad(what, found)
        return found

    def text(self, found: Any, what: str) -> str:
        if not isinstance(found, str):
            raise self.bad(what, found)
        return found

    def count(self, found: Any, what: str) -> int:
        if type(found) is not int or found < 0:
            raise self.bad(what, found)
        return found

    def costs(self, times: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
        self.version(times.get("woqfx_timings"))
        costs = {}
        for entry in self.listed(times.get("blocks"), "blocks"):
            block = self.mapping(entry, "a block")
            numbers = [number(block.get(key)) for key in ("seconds", "memory")]
            if numbers[0] is None or numbers[1] is None:
                raise self.bad("a block's seconds or memory", [block.get("seconds"), block.get("memory")])
            costs[self.text(block.get("name"), "a block's name")] = (numbers[0], numbers[1])
        return costs

    def block(self, found: Any, costs: Mapping[str, tuple[float, float]]) -> BlockFacts:
        block = self.mapping(found, "a block")
        name = self.text(block.get("name"), "a block's name")
        seconds, memory = costs.get(name, (None, None))
        return BlockFacts(
            name,
            block.get("unreached") is not True,
            self.errors(block.get("error", {}), f"the error of {name}"),
            tuple(self.feed(feed, name) for feed in self.listed(block.get("feeds", []), f"feeds of {name}")),
            {
                layer: self.layer(facts, f"{name}.{layer}")
                for layer, facts in self.mapping(block.get("layers", {}), f"layers of {name}").items()
            },
            self.mapping(block.get("notes", {}), f"notes of {name}"),
            seconds,
            memory,
        )

    def feed(self, found: Any, block: str) -> FeedFacts:
        feed = self.mapping(found, f"a feed of {block}")
        name = self.text(feed.get("name"), f"the name of a feed of {block}")
        reason = self.text(feed.get("reason", ""), f"the reason of {block} {name}")
        known = {"name", "by", "producers", "consumers", "used", "reason"}
        facts = {key: value for key, value in feed.items() if key not in known}
        return FeedFacts(name, feed.get("used") is True, reason, facts)

    def layer(self, found: Any, name: str) -> LayerFacts:
        layer = self.mapping(found, name)
        experts = self.listed(layer.get("experts", []), f"experts of {name}")
        tokens = layer.get("tokens")
        return LayerFacts(
            self.errors(layer.get("weight_error", {}), f"the weight error of {name}"),
            self.errors(layer.get("output_error", {}), f"the output error of {name}"),
            None if tokens is None else self.count(tokens, f"tokens of {name}"),
            self.mapping(layer.get("notes", {}), f"notes of {name}"),
            tuple(self.expert(expert, name) for expert in experts),
        )

    def expert(self, found: Any, name: str) -> ExpertFacts:
        expert = self.mapping(found, f"an expert of {name}")
        fallback = expert.get("fallback", "")
        return ExpertFacts(self.count(expert.get("tokens", 0), f"an expert's tokens of {name}"), str(fallback or ""))

    def errors(self, found: Any, what: str) -> dict[str, float]:
        """Errors by step; those that were not finite are left out, and so are steps that we do not know."""
        errors = {step: number(error) for step, error in self.mapping(found, what).items()}
        return {step: error for step in STEPS if (error := errors.get(step)) is not None and error >= 0}


def number(found: Any) -> float | None:
    """`found` if it is a finite number."""
    if isinstance(found, bool) or not isinstance(found, int | float) or abs(found) > 1e300 or math.isnan(found):
        return None
    return float(found)
