"""Tuning a checkpoint as a whole, against the model that it was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from woqfx.calibration import Calibration, CalibrationRequest, prepare_calibration
from woqfx.disk.output import refuse_inside, refuse_taken
from woqfx.errors import CalibrationError, WoqfxError
from woqfx.learning.learning import Learning, Rates
from woqfx.loading import open_checkpoint
from woqfx.memory import single_threaded
from woqfx.source import open_source
from woqfx.transcoding import OWN, transcode
from woqfx.tuning.tuned import Tuned
from woqfx.tuning.whole import PREFIX, check_alike, whole

#: One sequence in so many is not learned from: what was learned is judged by them.
_HELD_OUT = 8
#: Sequences whose gradients make a step.
_BATCH = 2
_PRODUCTS = {"fp32": torch.float32, "bf16": torch.bfloat16}

#: Told after each step: how many are done, and of how many.
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class TuningOptions:
    """How a checkpoint is tuned.

    `passes` over the data are made; `rate` is how far a number moves in a step at first, relative to its size.
    `products` is the type in which both models run, fp32 or bf16: the latter takes half the time on a CPU with
    instructions for it. `seed` decides the order of the data. Raises `WoqfxError` for values that cannot be meant.
    """

    passes: float = 1.0
    rate: float = 0.001
    products: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("passes", "rate"):
            if not 0 < getattr(self, name) < 1e6:
                raise WoqfxError(f"tuning: {name} is {getattr(self, name)}: it must be a number above 0")
        if self.products not in _PRODUCTS:
            raise WoqfxError(f"tuning: products is {self.products!r}: it must be {' or '.join(_PRODUCTS)}")


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
    `original` (a folder, GGUF file or Hub name) on calibration data by gradients of norms' weights and biases (as norm
    tweaking, arXiv 2309.02784, does for a block at a time). All quantized weights stay. Both models are in memory: see
    `tuning_memory`.

    What was learned is judged by an eighth of the sequences, which is not learned from, and written if it is better. A
    call that was stopped begins anew. Raises `PlanError` if the two models are not alike, before anything is computed;
    `CalibrationError`, `OutputError`.
    """
    options, out = options or TuningOptions(), Path(out)
    stored, source = open_checkpoint(Path(model)), open_source(original)
    refuse_inside(out, Path(model))
    refuse_taken(out, replace=overwrite)
    check_alike(stored, source)
    calibration = prepare_calibration(data or CalibrationRequest(), source)
    rows = [row.unsqueeze(0) for batch in calibration.batches for row in batch]
    if len(rows) < 2:
        raise CalibrationError("tuning needs two sequences at least, one to learn from and one to judge by: samples=2")
    held_out = range(len(rows))[_HELD_OUT - 1 :: _HELD_OUT] or range(len(rows))[-1:]
    learned = [number for number in range(len(rows)) if number not in held_out]
    steps = max(1, round(options.passes * len(learned) / _BATCH))
    workers = torch.get_num_threads()
    with single_threaded():
        all_of_it = whole(stored, source, rows, _PRODUCTS[options.products], workers)
        rates = Rates(codes=0, scales=0, vectors=options.rate)
        learning = Learning(all_of_it.block, all_of_it.quantized, all_of_it.divergence, rates, options.seed)
        before = learning.error(held_out)
        learning.run(learned, steps, _BATCH, report and (lambda done: report(done, steps)))
        after = learning.error(held_out)
    found = Tuning(before, after, len(learned), len(held_out))
    if found.better:
        kept = {name.removeprefix(PREFIX): one for name, one in learning.results().items() if isinstance(one, Tensor)}
        tuned = Tuned(stored, kept, _told(options, calibration, found))
        for _ in transcode(tuned, out, OWN, overwrite=overwrite):
            pass
    return found


def tuning_memory(model: str | Path) -> int:
    """About how many bytes `tune` takes, beside what running the two models does: from the checkpoint's sizes alone."""
    stored = open_checkpoint(Path(model))
    quantized = sum(prod(weight.shape) for weight in stored.weights.values())
    kept = sum(prod(info.shape) for info in stored.kept.values())
    return 8 * (quantized + kept)  # the original in float32, and what is stored


def _told(options: TuningOptions, calibration: Calibration, found: Tuning) -> dict[str, Any]:
    """What the manifest says of it."""
    data = {"description": calibration.description, "sha256": calibration.digest}
    return {**asdict(options), "calibration": data, "divergence": {"before": found.before, "after": found.after}}
