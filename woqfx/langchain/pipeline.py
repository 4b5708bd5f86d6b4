"""`WeightOnlyQuantPipeline`: the class that LangChain's documents on weight-only quantization use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from woqfx.errors import SettingsError
from woqfx.generating import Settings, TextGenerator
from woqfx.langchain.llm import TextModel
from woqfx.langchain.pipelines import TextPipeline, check_task, readable, settings_of
from woqfx.langchain.source import Lazy, LiveModel, ModelSource, digest_of_files, name_of
from woqfx.vocabularies import arguments_of

# What a tokenizer's `from_pretrained` understands of what a model's does.
_SHARED = ("revision", "cache_dir", "token", "trust_remote_code", "local_files_only", "subfolder", "force_download")
# What `model_kwargs` may say about generating, as transformers 4 allowed.
_GENERATING = frozenset(
    ("temperature", "top_k", "top_p", "max_length", "max_new_tokens", "do_sample", "num_beams", "repetition_penalty")
)


class WeightOnlyQuantPipeline(TextModel):
    """A model whose weights are quantized when it is loaded, as a LangChain LLM: the original's class, mended.

        llm = WeightOnlyQuantPipeline.from_model_id(
            model_id="google/flan-t5-large", task="text2text-generation",
            quantization_config=WeightOnlyQuantConfig(weight_dtype="nf4"), pipeline_kwargs={"max_new_tokens": 10},
        )
        llm = WeightOnlyQuantPipeline(pipeline=pipe)

    Tasks: text-generation, text2text-generation and summarization. `pipeline_kwargs` say how to generate, and so may
    the parameters of a call.
    """

    pipeline: Any = Field(exclude=True, repr=False)
    """A pipeline of transformers, or one of `woqfx.langchain.pipeline`."""
    model_id: str = ""
    model_kwargs: dict[str, Any] | None = None
    pipeline_kwargs: dict[str, Any] | None = None
    quantization_config: Any = None
    batch_size: int = Field(default=8, ge=1)
    """How many prompts run at a time."""

    @classmethod
    def from_model_id(
        cls,
        model_id: str,
        task: str,
        device: Any = -1,
        device_map: Any = None,
        model_kwargs: dict[str, Any] | None = None,
        pipeline_kwargs: dict[str, Any] | None = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        quantization_config: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Load a model, quantized by `quantization_config`, or to nf4 or int8 by `load_in_4bit` or `load_in_8bit`.

        `device` is -1 or "cpu", `device_map` None, "cpu", "auto" or {"": "cpu"}: each of them means the CPU.
        `model_kwargs` go to transformers' `from_pretrained`; `kwargs` are more fields, such as `batch_size`. Raises
        `SettingsError` for what cannot be meant, before anything is loaded.
        """
        check_task(task)
        _check_places(device, device_map)
        quantization = _quantization(load_in_4bit, load_in_8bit, quantization_config)
        settings = {**_generating(model_kwargs), **readable(pipeline_kwargs or {})}
        batch_size = settings.pop("batch_size", None) or kwargs.pop("batch_size", 8)
        Settings.read({name: value for name, value in settings.items() if name != "prefix"})
        model, tokenizer = _load(
            model_id, task, quantization, {k: v for k, v in (model_kwargs or {}).items() if k not in _GENERATING}
        )
        pipe = TextPipeline(task, model, tokenizer, batch_size=batch_size, **settings)
        made = cls(
            pipeline=pipe,
            model_id=model_id,
            model_kwargs=model_kwargs,
            pipeline_kwargs=pipeline_kwargs,
            quantization_config=quantization,
            batch_size=batch_size,
            **kwargs,
        )
        known = {**made._known(), "files": digest_of_files(Path(model_id))}
        made._lazy = Lazy(LiveModel(pipe.generator, known, number=""))
        return made

    @property
    def _llm_type(self) -> str:
        return "weight_only_quantization"

    def _source(self) -> ModelSource:
        live = None if self._lazy is None else self._lazy.source
        if isinstance(live, LiveModel) and live.generator.model is self.pipeline.model:
            return live
        if isinstance(self.pipeline, TextPipeline):
            generator = self.pipeline.generator
        else:
            generator = TextGenerator(self.pipeline.model, self.pipeline.tokenizer, batch_size=self.batch_size)
        return LiveModel(generator, self._known())

    def _known(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in ("model_id", "model_kwargs", "quantization_config")}
        return {"task": self.pipeline.task, **fields}

    def _settings(self, stop: Sequence[str] | None, given: Mapping[str, Any]) -> Settings:
        own, call = readable(self.pipeline_kwargs or {}), dict(given)
        call = readable({**call, **(call.pop("pipeline_kwargs", None) or {}), "stop": stop})
        for ours in ("prefix", "batch_size"):
            own.pop(ours, None)
        return Settings.read(call, Settings.read({**settings_of(self.pipeline), **own}))

    def _with(self, given: dict[str, Any]) -> Self:
        call = {name: value for name, value in given.items() if name != "pipeline_kwargs"}
        asked = {**(self.pipeline_kwargs or {}), **call, **(given.get("pipeline_kwargs") or {})}
        return self.model_copy(update={"pipeline_kwargs": asked})

    def _put(self, prompt: str) -> str:
        prefix = (self.pipeline_kwargs or {}).get("prefix") or getattr(self.pipeline, "prefix", None)
        return f"{prefix or ''}{prompt}"

    @model_validator(mode="after")
    def _check_pipeline_fields(self) -> Self:
        if not hasattr(self.pipeline, "task") or not hasattr(self.pipeline, "tokenizer"):
            raise SettingsError(
                f"pipeline must be a pipeline of transformers or woqfx.langchain, not {self.pipeline!r}"
            )
        check_task(self.pipeline.task)
        self.model_id = self.model_id or name_of(self.pipeline.model)
        self._settings(None, {})
        self._held()
        return self


def _check_places(device: Any, device_map: Any) -> None:
    if device_map is not None and isinstance(device, int) and device > -1:
        raise SettingsError("`Device` and `device_map` cannot be set simultaneously!")
    if str(device) not in ("-1", "cpu", "None"):
        raise SettingsError(f"device is {device!r}, and woqfx runs models on the CPU: say -1 or 'cpu', or leave it out")
    places = set(map(str, device_map.values())) if isinstance(device_map, Mapping) else {str(device_map)}
    if places - {"None", "cpu", "auto"}:
        raise SettingsError(
            f"device_map is {device_map!r}, and woqfx runs models on the CPU: say 'cpu', or leave it out"
        )


def _quantization(load_in_4bit: bool, load_in_8bit: bool, given: Any) -> Any:
    """What the original's flags stand for: round to nearest, to nf4 or int8, by groups of 32."""
    if sum((load_in_4bit, load_in_8bit, given is not None)) > 1:
        raise SettingsError("load_in_4bit, load_in_8bit and quantization_config exclude each other: say one")
    if isinstance(given, type):
        raise SettingsError(f"quantization_config is the class {given.__name__}: pass an object, {given.__name__}(...)")
    if not load_in_4bit and not load_in_8bit:
        return given
    from woqfx.transformers import WeightOnlyQuantConfig

    return WeightOnlyQuantConfig(weight_dtype="nf4" if load_in_4bit else "int8")


def _generating(model_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (model_kwargs or {}).items() if name in _GENERATING}


def _as_ours(quantization: Any) -> Any:
    """A configuration that transformers gives to woqfx: others, such as bitsandbytes', it would carry out itself."""
    from woqfx.transformers import WoqfxConfig

    ours = getattr(quantization, "quant_method", None) == "woqfx"
    return quantization if ours else WoqfxConfig(**arguments_of(quantization))


def _load(model_id: str, task: str, quantization: Any, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """A model as transformers loads it, quantized by woqfx on the way, and its tokenizer."""
    import transformers

    import woqfx.transformers  # noqa: F401 - registers woqfx with transformers

    auto = transformers.AutoModelForCausalLM if task == "text-generation" else transformers.AutoModelForSeq2SeqLM
    if quantization is not None:
        arguments = {**arguments, "quantization_config": _as_ours(quantization)}
    model = auto.from_pretrained(model_id, **arguments)
    shared = {name: value for name, value in arguments.items() if name in _SHARED}
    return model.eval(), transformers.AutoTokenizer.from_pretrained(model_id, **shared)
