"""`woqfx eval --tasks`: scores at the field's own tasks, as a table or as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from woqfx.cli import text
from woqfx.cli.models import load_any, load_tokenizer
from woqfx.cli.running import Running

if TYPE_CHECKING:
    from woqfx.tasks import Score


def evaluate_tasks(
    model: str, against: str | None, backend: Running, asked: dict[str, Any], folder: Path | None, as_json: bool
) -> None:
    """Run the tasks on MODEL, and on the original beside it. `asked` holds `score_tasks`' own options."""
    scores = _scored(model, backend, asked, folder)
    before = {} if against is None else {(s.task, s.metric): s for s in _scored(against, backend, asked, folder)}
    if as_json:
        rows = [_row(score, before.get((score.task, score.metric))) for score in scores]
        click.echo(json.dumps({"model": model, "against": against, "scores": rows}, indent=1))
        return
    columns = ["task", "metric", "score", *(["original", "change"] if against else []), "examples", "shots"]
    grid = text.Grid(*columns, numbers={"score", "original", "change", "examples", "shots"})
    for score in scores:
        original = before.get((score.task, score.metric))
        beside = [] if original is None else [_shown(original), f"{score.value - original.value:+.4f}"]
        arrow = "↑" if score.higher_is_better else "↓"
        grid.add(score.task, f"{score.metric} {arrow}", _shown(score), *beside, str(score.examples), str(score.shots))
    grid.show(text.console())


def _scored(model: str, backend: Running, asked: dict[str, Any], folder: Path | None) -> list[Score]:
    from woqfx.tasks import score_tasks

    return score_tasks(load_any(model, backend), load_tokenizer(model), folder=folder, **asked)


def _shown(score: Score) -> str:
    return f"{score.value:.4f}" + ("" if math.isnan(score.error) else f" ± {score.error:.4f}")


def _row(score: Score, original: Score | None) -> dict[str, Any]:
    row = dataclasses.asdict(score) | {"error": None if math.isnan(score.error) else score.error}
    return row if original is None else row | {"original": original.value}
