"""Models on the plain engine, beside the models of transformers that they must agree with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plain_engine import OutOfMemory, PlainEngine, dense_weights
from tiny_models import tiny_model

from woqfx_llm_runtime.causal_lm import RuntimeModel
from woqfx_llm_runtime.families import family_of
from woqfx_llm_runtime.requests.scheduler import Scheduler


@dataclass
class Pair:
    """A tiny model of transformers, and the same one on an engine."""

    torch: Any
    runtime: RuntimeModel
    engine: Any


def pair_of(family: str, *, max_memory: int = 1 << 40, by_length: int | None = None, **changes: Any) -> Pair:
    """A pair on the plain engine."""
    model = tiny_model(family, **changes)
    describe = family_of(model)
    assert describe is not None
    engine: Any = PlainEngine(describe(model), dense_weights(model), max_memory)
    scheduler = Scheduler(
        engine,
        by_length=by_length,
        restarts=family == "phi3",
        out_of_memory=OutOfMemory,
        cancelled=KeyError,
    )
    return Pair(model, RuntimeModel(model.config, scheduler, "plain"), engine)
