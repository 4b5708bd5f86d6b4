"""From one checkpoint format to another, a weight at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import torch
from torch import Tensor

import woqfx
from woqfx.disk.checkpoint import small_files
from woqfx.disk.manifest import FileFacts, Manifest, Marker, natural
from woqfx.disk.output import refuse_inside
from woqfx.disk.receipt import Receipt
from woqfx.disk.shards import SHARD_BYTES
from woqfx.disk.writer import open_writer
from woqfx.errors import CheckpointError, PlanError
from woqfx.format import Format, Output, StoredModel
from woqfx.loading import open_checkpoint
from woqfx.paths import read_path
from woqfx.plugins import registry
from woqfx.progress import Progress, showing
from woqfx.qtensor import QTensor
from woqfx.refitting import Refitted, fit_into
from woqfx.reporting import reporting
from woqfx.source.hub import resolve

#: woqfx's own format among the names of the others.
OWN = "woqfx"


@dataclass(frozen=True)
class Transcoding:
    """What came of a conversion: how many weights, `losses` of those that were quantized again, and what to know."""

    weights: int
    kept: int
    losses: Mapping[str, float]
    notes: Mapping[str, str]


@dataclass(frozen=True)
class Transcoded:
    """One weight or kept tensor that was written; `loss` is |W - W'| / |W| if it was quantized again."""

    name: str
    loss: float | None


def target_formats() -> tuple[str, ...]:
    """The names of the formats that can be written."""
    forms = registry().names("format")
    return (OWN, *(name for name in forms if registry().get("format", name).can_write))


def convert(
    model: str | Path,
    out: str | Path,
    *,
    to: str = OWN,
    requantize: bool = False,
    overwrite: bool = False,
    progress: Progress = "auto",
) -> Transcoding:
    """Write the quantized checkpoint `model` into the folder `out` in another format, a weight at a time.

    `model` is a folder, a file or the Hub name of a model in any format that is read here, `to` one of
    `target_formats`: woqfx's own, by default.
    Codes and scales are carried over exactly. If the format cannot hold some weights, `PlanError` names them, the
    reason and what would fit, before anything is written; with `requantize` they are quantized again instead, and
    `losses` says how far each is from what it was. A killed call goes on when it is made again.
    """
    out = read_path(out, "out")
    stored = open_checkpoint(resolve(read_path(model, "model")))
    with showing(progress):
        done = {one.name: one.loss for one in transcode(stored, out, to, requantize=requantize, overwrite=overwrite)}
    losses = {name: loss for name, loss in done.items() if loss is not None}
    return Transcoding(len(stored.weights), len(stored.kept), losses, stored.notes)


def transcode(
    model: StoredModel,
    out: Path,
    to: str,
    *,
    requantize: bool = False,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Iterator[Transcoded]:
    """Write `model` into the folder `out` in the format `to`, going on with a killed run that was the same.

    Yields each tensor after it is written, those of the killed run first; the output is complete when the iterator
    ends. Raises `PlanError` if the format cannot hold the model, before anything is read or written;
    `CheckpointError`, `OutputError`.
    """
    held = model if to == OWN else fit_into(model, _format(to), requantize=requantize)
    output = OwnOutput(model) if to == OWN else _format(to).output(held)
    losses: Mapping[str, float] = held.losses if isinstance(held, Refitted) else {}
    refuse_inside(out, Path(model.label))
    fingerprint = model.fingerprint()
    run = {
        "woqfx": woqfx.__version__,
        "source": {"name": model.label, "fingerprint": fingerprint},
        "request": {"format": to, "requantize": requantize},
        "shard_bytes": shard_bytes,
    }
    shards = output.shards(shard_bytes)
    writer = open_writer(out, shards, run, overwrite=overwrite, resumable=bool(fingerprint))
    counts = {name: prod(weight.shape) for name, weight in model.weights.items()}
    doing = "converting" if to == OWN else "exporting"
    tensors = len(output.items)
    with (
        closing(writer),
        reporting(model.label, counts, out, tensors, earlier=writer.facts, doing=doing) as report,
    ):
        yield from [Transcoded(item, facts["loss"]) for item, facts in writer.facts.items()]
        for item in [item for item in output.items if item not in writer.facts]:
            parts = output.parts(item)
            committed = writer.write(item, parts, {"loss": losses.get(item)})
            report.done(item, losses.get(item))
            if committed:
                report.committed(writer.nbytes)
            yield Transcoded(item, losses.get(item))
        if model.fingerprint() != fingerprint:
            raise CheckpointError(f"{model.label} was changed while it was read: start again with overwrite=True")
        lost = {name: facts["loss"] for name, facts in writer.facts.items() if facts["loss"] is not None}
        writer.finish(output.small_files, lambda files: _marker(held, to, lost, files))


def _format(name: str) -> Format:
    form: Format = registry().get("format", name)
    if not form.can_write:
        raise PlanError([f"format {name} is only read here; written are {', '.join(target_formats())}"])
    return form


def _marker(model: StoredModel, to: str, lost: Mapping[str, float], files: Mapping[str, FileFacts]) -> Marker:
    if to == OWN:
        return OwnOutput(model).manifest(files)
    schemes = {name: weight.scheme.to_json() for name, weight in model.weights.items()}
    return Receipt(to, model.request, {n: {"error": lost[n], "scheme": schemes.get(n)} for n in sorted(lost)}, files)


class OwnOutput(Output):
    """A model in woqfx's own format: every grid fits."""

    def __init__(self, model: StoredModel) -> None:
        self._model = model

    @cached_property
    def items(self) -> Mapping[str, Mapping[str, tuple[torch.dtype, tuple[int, ...]]]]:
        """See `Output.items`."""
        model = self._model
        made: dict[str, Mapping[str, tuple[torch.dtype, tuple[int, ...]]]] = {}
        for name in sorted((*model.weights, *model.kept), key=natural):
            weight = model.weights.get(name)
            if weight is None:
                made[name] = {name: (model.kept[name].dtype, model.kept[name].shape)}
                continue
            specs = QTensor.specs(
                registry().dtype(weight.scheme.dtype),
                weight.scheme,
                weight.shape,
                ordered=weight.ordered,
                offsets=weight.offsets,
            )
            made[name] = {f"{name}.{suffix}": spec for suffix, spec in specs.items()}
        return made

    def parts(self, item: str) -> Mapping[str, Tensor]:
        """See `Output.parts`."""
        if item not in self._model.weights:
            return {item: self._model.read_kept(item)}
        return {f"{item}.{suffix}": part for suffix, part in self._model.read_weight(item).tensors().items()}

    def manifest(self, files: Mapping[str, FileFacts]) -> Manifest:
        """What completes the folder that holds `files`."""
        model = self._model
        errors = {name: model.errors.get(name) for name in model.weights}
        return Manifest(model.request, model.weights, errors, model.aliases, files)

    def small_files(self) -> Mapping[str, bytes]:
        """See `Output.small_files`."""
        return small_files(self._model.config, self._model.request, self._model.sidecars())
