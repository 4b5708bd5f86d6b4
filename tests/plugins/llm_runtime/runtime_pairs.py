"""Models on the plain engine, beside the models of transformers that they must agree with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plain_engine import OutOfMemory, PlainEngine, dense_weights
from tiny_models import tiny_model

from woqfx_llm_runtime.causal_lm import RuntimeModel
from woqfx_llm_runtime.families import family_of
from woqfx_llm_runtime.requests.scheduler import Scheduler
from woqfx_llm_runtime.seq2seq import RuntimeSeq2Seq


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
    described = describe(model)
    engine: Any = PlainEngine(described, dense_weights(model), max_memory)
    scheduler = Scheduler(
        engine,
        by_length=by_length,
        restarts=family == "phi3",
        out_of_memory=OutOfMemory,
        cancelled=KeyError,
    )
    kind = RuntimeModel if described.encoder is None else RuntimeSeq2Seq
    return Pair(model, kind(model.config, scheduler, "plain"), engine)
