"""What happens during a run, as data: for progress bars, logs and tests."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """The base of all events. `run` tells concurrent runs apart."""

    run: str

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object, its kind under `event`."""
        return {"event": type(self).__name__, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class RunStarted(Event):
    """A run began: `tensors` to go through, of which `resumed` were done by an earlier, killed run.

    `weights` counts the numbers to quantize, `resumed_weights` those of them that the earlier run did.
    `output` is None if nothing is written. `doing` is what a bar calls it: quantizing, converting, exporting.
    """

    source: str
    output: str | None
    tensors: int
    resumed: int
    weights: int
    resumed_weights: int
    doing: str = "quantizing"


@dataclass(frozen=True)
class TensorDone(Event):
    """One tensor is quantized or carried over: the `done`-th of `tensors`, in `seconds`.

    `weights` counts the numbers that were quantized, and `error` is |W - W'| / |W|; 0 and None if it was carried over.
    """

    name: str
    done: int
    tensors: int
    weights: int
    seconds: float
    error: float | None


@dataclass(frozen=True)
class BlockStarted(Event):
    """Work on a block began, the `number`-th of `blocks`: its tensors come when all of it is done.

    Only algorithms that look at data go block by block.
    """

    name: str
    number: int
    blocks: int


@dataclass(frozen=True)
class BlockDone(Event):
    """A block is done, in `seconds`; the process has held up to `memory` bytes so far.

    `error` is |Y' - Y|^2 / |Y|^2 of the block's output for a few tokens; None if text does not reach the block.
    """

    name: str
    number: int
    blocks: int
    seconds: float
    memory: int
    error: float | None


@dataclass(frozen=True)
class Committed(Event):
    """All that was done so far would survive a power cut."""

    done: int
    bytes_written: int


@dataclass(frozen=True)
class RunFinished(Event):
    """The output is complete, or, for a live module, the module is."""

    output: str | None
    seconds: float


@dataclass(frozen=True)
class RunFailed(Event):
    """The run ended early. What was committed is kept."""

    error: str
