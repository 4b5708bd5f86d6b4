"""Pipelines of the three tasks, two of which transformers 5 no longer has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from woqfx.errors import SettingsError
from woqfx.generating import Settings, TextGenerator

#: The tasks, and the key of an answer in what a pipeline gives.
TASKS = {"text-generation": "generated_text", "text2text-generation": "generated_text", "summarization": "summary_text"}


class TextPipeline:
    """A model, its tokenizer, and how to generate, called as pipelines of transformers 4 were.

    It gives [{"generated_text": ...}] for one text, and for several a list of as many; for summarization the key is
    "summary_text". The prompt is not part of it. A model's own settings for the task (`task_specific_params` in its
    config, such as T5's prefix "summarize: ") count where the caller says nothing.
    """

    def __init__(self, task: str, model: Any, tokenizer: Any, *, batch_size: int = 8, **settings: Any) -> None:
        check_task(task)
        if (task != "text-generation") != bool(model.config.is_encoder_decoder):
            kind = "has an encoder" if model.config.is_encoder_decoder else "has no encoder"
            raise SettingsError(f"{type(model).__name__} {kind}, which the task {task} is not for")
        self.task = task
        self.model = model
        self.tokenizer = tokenizer
        own = dict((getattr(model.config, "task_specific_params", None) or {}).get(task, {}))
        prefix = own.pop("prefix", None)
        self.prefix = str(settings.pop("prefix", None) or prefix or "")
        #: How it generates, unless a call says otherwise.
        self.settings = readable({**own, **settings})
        self.generator = TextGenerator(model, tokenizer, batch_size=batch_size)
        Settings.read(self.settings)

    def __call__(self, text: str | Sequence[str], **settings: Any) -> list[Any]:
        """Answers for a text, or for several."""
        texts = [text] if isinstance(text, str) else list(text)
        prompts = [self.generator.text_prompt(self.prefix + one) for one in texts]
        asked = Settings.read({**self.settings, **readable(settings)})
        return [{TASKS[self.task]: answer.text} for answer in self.generator.generate(prompts, asked)]


def pipeline(task: str, model: Any = None, tokenizer: Any = None, **settings: Any) -> Any:
    """transformers' `pipeline`, with the tasks "text2text-generation" and "summarization" that it had before version 5.

    Raises `SettingsError` for another task than these two and "text-generation".
    """
    check_task(task)
    if task == "text-generation":
        import transformers

        theirs: Any = transformers.pipeline
        return theirs(task, model=model, tokenizer=tokenizer, **settings)
    if model is None or tokenizer is None or isinstance(model, str):
        raise SettingsError(f"pipeline({task!r}) needs model=a loaded model, and tokenizer=its tokenizer")
    return TextPipeline(task, model, tokenizer, **settings)


def check_task(task: str) -> None:
    """Raise `SettingsError` for a task that is none of the three."""
    if task not in TASKS:
        raise SettingsError(f"Got invalid task {task}, currently only {tuple(TASKS)} are supported")


def readable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of pipelines as settings of generation: without those that say what happens here anyway."""
    asked = dict(settings)
    if asked.pop("return_full_text", None):
        raise SettingsError("return_full_text is not to be had: an answer never holds its prompt")
    return asked


def settings_of(pipeline: Any) -> dict[str, Any]:
    """How a pipeline generates by itself: one of ours, or one of transformers."""
    if isinstance(pipeline, TextPipeline):
        return pipeline.settings
    asked = dict(pipeline._prepare_generate_kwargs({}))  # the one place where transformers puts its sources together
    config = asked.pop("generation_config", None)
    asked = {**({} if config is None else config.to_diff_dict()), **asked}
    return {name: value for name, value in asked.items() if name not in ("pad_token_id", "transformers_version")}
