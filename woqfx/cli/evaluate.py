"""`woqfx eval`: how good a model is, and how much quantizing cost it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from woqfx.cli import text
from woqfx.cli.models import LOADING, load_any, load_tokenizer
from woqfx.cli.running import RunCommand, Running

if TYPE_CHECKING:
    from torch import Tensor

    from woqfx.evaluate import Comparison, Perplexity

_CHARACTERS = 32  # read per token wanted; tokens are shorter in every common script


@click.command(
    "eval",
    cls=RunCommand,
    short_help="Measure perplexity, the distance to the original, or scores at tasks.",
    epilog="""\b
Examples:
  woqfx eval out/
  woqfx eval out/ --against path/to/model
  woqfx eval out/ --text wiki.test.raw --tokens 100000 --context 2048
  woqfx eval path/to/model --json
  woqfx eval out/ --tasks hellaswag,piqa --limit 200 --against path/to/model
""",
)
@click.argument("model")
@click.option("--against", metavar="ORIGINAL", help="The model before: a folder, a .gguf file, or a name on the Hub.")
@click.option(
    "--text",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="UTF-8 text to predict.  [default: the help topics of this Python, real English prose]",
)
@click.option(
    "--tokens", default=2048, show_default=True, type=click.IntRange(min=2), metavar="N", help="How much of it."
)
@click.option(
    "--context",
    default=512,
    show_default=True,
    type=click.IntRange(min=2),
    metavar="N",
    help="The text is cut into windows of N tokens; each token is predicted from those before it in its window.",
)
@click.option("--json", "as_json", is_flag=True, help="The numbers as one JSON object.")
@click.option(
    "--tasks",
    metavar="NAMES",
    help="Instead of a text: tasks of lm-evaluation-harness, with commas between (needs the extra `eval`).",
)
@click.option(
    "--task-folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="More tasks: .yaml files as the harness describes them.",
)
@click.option("--shots", type=click.IntRange(min=0), metavar="N", help="Solved examples before each question.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Ask only the first N examples of each task.")
@click.option(
    "--batch", default=1, show_default=True, type=click.IntRange(min=1), metavar="N", help="Examples at a time."
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str,
    against: str | None,
    file: Path | None,
    tokens: int,
    context: int,
    backend: Running,
    as_json: bool,
    tasks: str | None,
    **task_options: Any,
) -> None:
    """Measure how well MODEL predicts a text: the lower its perplexity, the better.

    MODEL is a checkpoint, or a model that is not quantized. With --against both are scored on the same tokens, and
    compared token by token: KL(original || model) says how much of the original's knowledge was lost, in nats per
    token, and agreement how often both would choose the same next token.

    Numbers compare only for the same text, tokens and context.

    With --tasks, MODEL is asked the questions of lm-evaluation-harness instead.
    """
    _one_kind(ctx, tasks)
    if tasks is not None:
        from woqfx.cli.tasks import evaluate_tasks

        asked = {"tasks": [name.strip() for name in tasks.split(",") if name.strip()]}
        asked |= {name: task_options[name] for name in ("shots", "limit", "batch")}
        evaluate_tasks(model, against, backend, asked, task_options["task_folder"], as_json)
        return
    with text.waiting(LOADING):
        from woqfx.evaluate import compare, perplexity

        words, label = _text(file, tokens)
        ids = _tokenized(model, words)[:tokens]
        run = load_any(model, backend)
        original = None if against is None else load_any(against, backend)
    result: Comparison | Perplexity
    with text.bar("predicting") as bar:

        def report(done: int) -> None:
            bar(done, len(ids))

        if original is None:
            result = perplexity(run, ids, context, report=report)
        else:
            result = compare(run, original, ids, context, report=report)
    what = {"model": model, "against": against, "text": label, "tokens": len(ids), "context": context}
    if as_json:
        click.echo(json.dumps(what | _numbers(result), indent=1))
    else:
        _show(what, result)


_OF_TEXT = ("file", "tokens", "context")
_OF_TASKS = ("task_folder", "shots", "limit", "batch")


def _one_kind(context: click.Context, tasks: str | None) -> None:
    """Options of the other kind of measurement would do nothing."""
    names = {parameter.name: parameter.opts[-1] for parameter in context.command.params}
    for name in _OF_TASKS if tasks is None else _OF_TEXT:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            other = "needs --tasks" if tasks is None else "is for a text, and --tasks asks questions instead"
            raise click.UsageError(f"{names[name]} {other}")


def _text(file: Path | None, tokens: int) -> tuple[str, str]:
    from woqfx.evaluate import EvaluationError, python_topics

    if file is None:
        words, label = python_topics()
        return words[: tokens * _CHARACTERS], label
    try:
        with file.open(encoding="utf-8") as opened:
            return opened.read(tokens * _CHARACTERS), str(file)
    except ValueError as error:
        raise EvaluationError(f"{file} is not UTF-8 text: {error}; convert it first") from error


def _tokenized(model: str, words: str) -> Tensor:
    ids: Tensor = load_tokenizer(model)(words, return_tensors="pt", verbose=False).input_ids[0]
    return ids


def _numbers(result: Comparison | Perplexity) -> dict[str, Any]:
    from woqfx.evaluate import Perplexity

    if isinstance(result, Perplexity):
        return {"scored": result.tokens, "perplexity": result.value}
    return {
        "scored": result.model.tokens,
        "perplexity": result.model.value,
        "original_perplexity": result.reference.value,
        "kl": result.divergence,
        "agreement": result.agreement,
    }


def _show(what: dict[str, Any], result: Comparison | Perplexity) -> None:
    numbers = _numbers(result)
    lines = {"perplexity": f"{numbers['perplexity']:.3f}"}
    if "kl" in numbers:
        before = numbers["original_perplexity"]
        lines["perplexity"] += f", {numbers['perplexity'] / before - 1:+.1%} to the original's {before:.3f}"
        lines["KL"] = f"{numbers['kl']:.5f} nats per token, KL(original || model)"
        lines["agreement"] = f"{numbers['agreement']:.1%} of the likeliest tokens are the original's"
    lines["measured on"] = (
        f"{numbers['scored']} of {what['tokens']} tokens of {what['text']}, in windows of {what['context']}"
    )
    text.facts(text.console(), lines)
