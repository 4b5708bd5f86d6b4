"""What all of woqfx's language models have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages.ai import UsageMetadata
from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, model_validator

import woqfx
from woqfx.errors import SettingsError
from woqfx.generating import Answer, Request, Settings, TextGenerator
from woqfx.langchain.source import Lazy, LiveModel, ModelSource, NamedModel, name_of, plain

_SETTINGS = (
    *("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty"),
    *("presence_penalty", "seed", "stop", "timeout"),
)


#: Said again in each class, since LangChain's classes say otherwise.
STRICT = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())


class LocalModel(BaseLanguageModel[Any]):
    """A model of this process: loaded when it is first needed, then shared by all threads."""

    model_config = STRICT

    _lazy: Lazy | None = PrivateAttr(default=None)

    def load(self) -> TextGenerator:
        """Load the model now; another language model may be given it, as `generator`, to share it."""
        return self._held().get()

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of `text` by the model's own tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.load().encode(text, special=False)

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """What decides about an answer, the quantization too: the key of LangChain's caches."""
        settings = plain(self._settings(None, {}).described())
        return {**self._held().source.identity(), "settings": settings, "woqfx": woqfx.__version__}

    @abstractmethod
    def _source(self) -> ModelSource:
        """Where the model comes from."""

    @abstractmethod
    def _settings(self, stop: Sequence[str] | None, given: Mapping[str, Any]) -> Settings:
        """The settings of one call: what the call says goes before what the object says."""

    def _held(self) -> Lazy:
        source = self._source()
        if self._lazy is None or self._lazy.source != source:
            self._lazy = Lazy(source)
        return self._lazy

    @model_validator(mode="after")
    def _set_woqfx_version(self) -> Self:
        self._add_version("woqfx", woqfx.__version__)
        return self


class ConfiguredModel(LocalModel):
    """A language model whose fields say what it is and how it answers."""

    model: str = ""
    """A checkpoint of woqfx, or another model: a folder, a .gguf file, or a name on the Hub."""
    tokenizer: str | None = None
    """A folder with a tokenizer, where it is not the model's own."""
    backend: str = "torch_cpu"
    """What runs the model."""
    backend_options: dict[str, Any] = Field(default_factory=dict)
    """The backend's own, as `woqfx.load` takes them: `{"kv": "int8"}` of llm_runtime, for one."""
    quantization_config: Any = None
    """How to quantize a model that is not: a `WeightOnlyQuantConfig`, a config of transformers, or a dict of one."""
    batch_size: int = Field(default=8, ge=1)
    """How many prompts run at a time."""
    generator: Any = Field(default=None, exclude=True, repr=False)
    """A model that is loaded already, in place of `model`: a `woqfx.generating.TextGenerator`."""

    max_tokens: int = Field(default=256, validation_alias=AliasChoices("max_tokens", "max_new_tokens"))
    """How many tokens an answer may have."""
    temperature: float | None = None
    """0 always takes the likeliest token. Of this and what follows, None leaves it to the model's generation config."""
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    """The same seed and prompt give the same answer."""
    stop: list[str] | str | None = None
    """Texts that end an answer; they are not part of it."""
    timeout: float | None = None
    """After how many seconds to give up, with an error."""
    generation_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Other parameters of transformers' `GenerationConfig`."""

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, *, batch_size: int = 8, **fields: Any) -> Self:
        """A language model from a loaded model and its tokenizer."""
        return cls(generator=TextGenerator(model, tokenizer, batch_size=batch_size), **fields)

    def _source(self) -> ModelSource:
        if self.generator is None:
            return NamedModel(
                model=self.model,
                tokenizer=self.tokenizer,
                backend=self.backend,
                backend_options=self.backend_options,
                quantization=self.quantization_config,
                batch_size=self.batch_size,
            )
        live = None if self._lazy is None else self._lazy.source
        if isinstance(live, LiveModel) and live.generator is self.generator:
            return live
        return LiveModel(self.generator)

    def _settings(self, stop: Sequence[str] | None, given: Mapping[str, Any]) -> Settings:
        fields = {name: getattr(self, name) for name in _SETTINGS}
        base = Settings.read({**fields, **self.generation_kwargs})
        return Settings.read({**given, "stop": stop}, base)

    @model_validator(mode="after")
    def _check_woqfx_fields(self) -> Self:
        if (self.generator is None) == (not self.model):
            raise SettingsError("say which model: either model='folder or name', or generator=a loaded one")
        if not self.model:
            self.model = name_of(self.generator.model)
        self._settings(None, {})
        self._held()
        return self


def usage_of(answers: Sequence[Answer]) -> UsageMetadata:
    """The tokens of `answers` and their prompts."""
    read, written = sum(a.prompt_tokens for a in answers), sum(a.new_tokens for a in answers)
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)


def answers_of(generator: TextGenerator, requests: Sequence[Request]) -> list[Answer]:
    """Run `requests`; raises the first error of any."""
    generator.run(requests)
    return [request.answer for request in requests]
