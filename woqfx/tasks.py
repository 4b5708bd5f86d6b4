"""How well a model does at the field's own tasks, by lm-evaluation-harness (the extra `eval`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from woqfx.errors import WoqfxError


class TaskError(WoqfxError):
    """Tasks cannot be run: their names, their data, or the package that runs them."""


@dataclass(frozen=True)
class Score:
    """One number of one task, as the harness names it. `error` is its standard error; NaN where there is none."""

    task: str
    metric: str
    value: float
    error: float = math.nan
    shots: int = 0
    #: How many examples it was measured on.
    examples: int = 0
    higher_is_better: bool = True


def score_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    batch: int = 1,
) -> list[Score]:
    """Run `tasks` (names, groups or patterns of the harness, or of YAML files in `folder`) on a model.

    `shots` solved examples come before each question (each task's own number by default); `limit` examples of each task
    are asked (default: all), `batch` at a time. Raises `TaskError`.
    """
    harness = _harness()
    manager = _manager(tasks, folder)
    found = manager.match_tasks(list(tasks))
    for wanted in tasks:
        if not manager.match_tasks([wanted]):
            near = ", ".join(manager.match_tasks([f"*{wanted}*"])[:5])
            hint = f"did you mean {near}?" if near else "lm-eval's own list: python -m lm_eval ls tasks"
            raise TaskError(f"there is no task {wanted!r}: {hint}")
    with _quiet():
        from lm_eval.models.huggingface import HFLM

        runner = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        try:
            results = harness.simple_evaluate(
                model=runner, tasks=found, num_fewshot=shots, limit=limit, task_manager=manager, log_samples=False
            )
        except Exception as error:  # data sets that cannot be fetched, and tasks that fail in ways of their own
            message = " ".join(str(error).split())[:500]
            raise TaskError(f"{', '.join(found)}: {type(error).__name__}: {message}") from error
    return list(_scores(results))


def _harness() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise TaskError(f"tasks need lm-eval ({error}): pip install 'woqfx[eval]'") from error
    return lm_eval


def _manager(tasks: Sequence[str], folder: Path | None) -> Any:
    """What knows the tasks: the folder alone if it has all of them, for the harness's own are 14,000 files to read."""
    from lm_eval.tasks import TaskManager

    if folder is None:
        return TaskManager()
    if not any(folder.glob("**/*.yaml")):
        raise TaskError(f"{folder} holds no .yaml file that could describe a task")
    own = TaskManager(include_path=str(folder), include_defaults=False)
    # Single tasks only: a group or a pattern may mean the harness's as well.
    return own if set(tasks) <= set(own.all_subtasks) else TaskManager(include_path=str(folder))


@contextmanager
def _quiet() -> Iterator[None]:
    """Its advice on arguments that nobody gave would break into what is printed."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _scores(results: Mapping[str, Any]) -> Iterator[Score]:
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, (int, float)) or not filtered:
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            yield Score(
                task=task,
                metric=metric if filtered == "none" else f"{metric} ({filtered})",
                value=float(value),
                error=float(error) if isinstance(error, (int, float)) else math.nan,
                shots=int(results.get("n-shot", {}).get(task, 0)),
                examples=int(results.get("n-samples", {}).get(task, {}).get("effective", 0)),
                higher_is_better=bool(results.get("higher_is_better", {}).get(task, {}).get(metric, True)),
            )
