"""Tuning a checkpoint as a whole, against the model that it was made from."""

from __future__ import annotations

import warnings
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import woqfx
from woqfx.calibration import Calibration, CalibrationRequest, prepare_calibration
from woqfx.disk.output import refuse_inside, refuse_taken
from woqfx.disk.shards import SHARD_BYTES
from woqfx.disk.writer import Writer, open_writer
from woqfx.errors import CalibrationError, CalibrationWarning, WoqfxError
from woqfx.loading import open_checkpoint
from woqfx.paths import read_path
from woqfx.source import open_source
from woqfx.transcoding import OwnOutput
from woqfx.tuning.learn import Report, Split, learn
from woqfx.tuning.options import TuningOptions
from woqfx.tuning.point import Point
from woqfx.tuning.tuned import Tuned
from woqfx.tuning.whole import check_alike, check_learnable

#: The file with how far a run has come, in its work place.
_POINT = "tuning.safetensors"
_SEEN = (
    "{} was quantized by these very sequences, so that they say little of its error elsewhere: "
    "others teach more, for instance seed=1 (--calibration-seed 1)"
)


@dataclass(frozen=True)
class Tuning:
    """What came of it: KL(original || model) in nats per token, on sequences that were not learned from.

    If `after` is no less than `before`, nothing was written.
    """

    before: float
    after: float
    sequences: int
    held_out: int

    @property
    def better(self) -> bool:
        """Whether the tuned model was written."""
        return self.after < self.before


def tune(
    model: str | Path,
    original: str | Path,
    out: str | Path,
    *,
    data: CalibrationRequest | None = None,
    options: TuningOptions | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> Tuning:
    """Tune the checkpoint `model`, in any format that is read here, and write what came of it into the folder `out`.

    Quantizing goes block by block; this looks at what the whole model predicts, and lessens its KL divergence from the
    `original` (a folder, GGUF file or Hub name) on calibration data, by gradients of groups' scales, as EfficientQAT
    does last (arXiv 2407.11062), and of norms' weights and biases. All codes and zero points stay, and so
    do stacks of experts and scales that are quantized themselves. Both models are in memory: see `tuning_memory`.

    What was learned is judged by an eighth of the sequences, which is not learned from, a few times and rounded as it
    is stored; the best of it is written, if it is better than what was there. The same call goes on where one was
    stopped, and ends with the same bytes. Warns (`CalibrationWarning`) if the checkpoint was made by the same data, by
    which it can hardly be judged. Raises `PlanError` if the two models are not alike, or nothing can be
    learned, before anything is computed; `CalibrationError`, `CheckpointError`, `OutputError`.
    """
    options, data = options or TuningOptions(), data or CalibrationRequest()
    model, out = read_path(model, "model"), read_path(out, "out")
    for name, given, kind in (("options", options, TuningOptions), ("data", data, CalibrationRequest)):
        if not isinstance(given, kind):
            raise WoqfxError(f"tuning: {name} is {given!r}: give a woqfx.{kind.__name__}(...)")
    stored, source = open_checkpoint(model), open_source(original)
    refuse_inside(out, model)
    refuse_taken(out, replace=overwrite)
    check_alike(stored, source)
    check_learnable(stored)
    calibration = prepare_calibration(data, source)
    rows = [row.unsqueeze(0) for batch in calibration.batches for row in batch]
    if len(rows) < 2:
        raise CalibrationError("tuning needs two sequences at least, one to learn from and one to judge by: samples=2")
    if stored.request.get("calibration", {}).get("sha256") == calibration.digest:
        warnings.warn(CalibrationWarning(_SEEN.format(stored.label)), stacklevel=2)
    run = {
        "woqfx": woqfx.__version__,
        "source": {"name": stored.label, "fingerprint": stored.fingerprint()},
        "original": source.fingerprint(),
        "request": {
            "original": source.label,
            "tuning": asdict(options),
            "calibration": {**data.to_json(), "sha256": calibration.digest},
        },
    }
    split = Split.of(rows)
    writer = open_writer(out, OwnOutput(stored).shards(SHARD_BYTES), run, overwrite=overwrite, check=_check)
    with closing(writer):
        if writer.is_complete:  # killed while its files were moved up, and what was learned went first
            point = Point(0, **next(iter(writer.facts.values())), best={}, state={})
        else:
            point = learn(stored, source, rows, split, options, _earlier(writer), partial(_keep, writer), report)
        found = Tuning(point.before, point.after, len(split.learned), len(split.held_out))
        if found.better:
            output = OwnOutput(Tuned(stored, point.best, _told(options, calibration, found)))
            for item in [item for item in output.items if item not in writer.facts]:
                writer.write(item, output.parts(item), {"before": point.before, "after": point.after})
            writer.finish(output.small_files, output.manifest)
        else:
            writer.abandon()
    return found


def tuning_memory(model: str | Path) -> int:
    """About how many bytes `tune` takes, beside what running the two models does: from the checkpoint's sizes alone."""
    stored = open_checkpoint(Path(model))
    quantized = sum(prod(weight.shape) for weight in stored.weights.values())
    kept = sum(prod(info.shape) for info in stored.kept.values())
    return 8 * (quantized + kept) + 4 * quantized  # both models in float32, and the gradients of weights


def _earlier(writer: Writer) -> Point | None:
    """How far a run that was stopped had come. Raises `CheckpointError`."""
    path = writer.work / _POINT
    return Point.read(path) if path.exists() else None


def _check(writer: Writer) -> None:
    """Raise `CheckpointError` unless a run that was stopped can go on."""
    _earlier(writer)


def _keep(writer: Writer, point: Point) -> None:
    """Keep how far this run has come."""
    point.write(writer.work / _POINT)
    writer.note({"steps": point.steps})


def _told(options: TuningOptions, calibration: Calibration, found: Tuning) -> dict[str, Any]:
    """What the manifest says of it."""
    data = {"description": calibration.description, "sha256": calibration.digest}
    return {**asdict(options), "calibration": data, "divergence": {"before": found.before, "after": found.after}}
