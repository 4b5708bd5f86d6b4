"""Text from a model: the one way that the command line, LangChain and the server take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

from woqfx.errors import SettingsError, SourceError
from woqfx.generating.detokenizing import Detokenizer
from woqfx.generating.grammar import Constraint, Grammars
from woqfx.generating.request import Answer, Piece, Prompt, Request
from woqfx.generating.sampling import Defaults, Sampler
from woqfx.generating.settings import Settings
from woqfx.generating.stream import Stream
from woqfx.generating.turns import Shared, Turns


class TextGenerator:
    """A loaded model and its tokenizer, for any number of threads.

    `model` is what `woqfx.load` or transformers gives; `batch_size` is how many answers are generated at a time.
    Prompts that come from several threads share batches, each with settings of its own.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 8) -> None:
        if not getattr(model, "can_generate", bool)():
            raise SourceError(f"{type(model).__name__} does not generate text")
        if batch_size < 1:
            raise SettingsError(f"batch_size must be at least 1, not {batch_size}")
        self.model = model
        self.tokenizer = tokenizer
        self._config = model.generation_config
        self._tokenizing = threading.Lock()  # fast tokenizers are not safe against two threads
        shares = hasattr(model, "submit")
        self._turns = (Shared if shares else Turns)(model, batch_size, self._padding)

    def __reduce__(self) -> Any:
        raise SettingsError("a loaded model cannot be pickled: pickle the name of its folder, and load it again")

    def text_prompt(self, text: str) -> Prompt:
        """A prompt to go on with; to an encoder-decoder model, its input."""
        tokens = tuple(self.encode(text))
        if not tokens:
            raise SettingsError("the prompt is empty, and this model has no token to begin with")
        return Prompt(tokens) if self.model.config.is_encoder_decoder else Prompt(tokens, tokens)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], /, **template: Any) -> Prompt:
        """Messages ({"role": ..., "content": ...}) in the model's chat template, to be answered.

        `template` are more of the template's variables, such as `tools`. Raises `SettingsError` if the tokenizer has no
        template, or its template refuses the messages.
        """
        return Prompt(tuple(self.encode(self.render(messages, **template), special=False)))

    def render(self, messages: Sequence[Mapping[str, Any]], /, *, answer: bool = True, **template: Any) -> str:
        """The text that the chat template makes of `messages`; with `answer`, up to where the answer begins."""
        if not self.tokenizer.chat_template:
            raise SettingsError(
                "the model has no chat template: use plain text prompts, or put a chat_template.jinja into its folder"
            )
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=answer, **template
            )
        except Exception as error:  # templates raise whatever they like, jinja's errors and Python's
            raise SettingsError(f"the model's chat template refuses the messages: {error}") from error
        return text

    def generate(
        self,
        prompts: Sequence[Prompt],
        settings: Settings,
        *,
        constraint: Constraint | None = None,
        special: bool = False,
    ) -> list[Answer]:
        """An answer for each of `prompts`, in their order. Raises the first error of any.

        `constraint` is what the answers must look like. With `special`, special tokens are text too.
        """
        requests = self.requests(prompts, settings, constraint=constraint, special=special)
        self.run(requests)
        return [request.answer for request in requests]

    def stream(
        self, prompt: Prompt, settings: Settings, *, constraint: Constraint | None = None, special: bool = False
    ) -> Stream:
        """An answer as it comes. Closing the stream cancels the generation."""
        if settings.beams:
            raise SettingsError(
                "num_beams decides about whole answers, which cannot be streamed: leave out one of both"
            )

        def make(listener: Callable[[Piece], None]) -> Request:
            return self.request(prompt, settings, constraint=constraint, special=special, listener=listener)

        return Stream(make, self.run)

    def requests(
        self,
        prompts: Sequence[Prompt],
        settings: Settings,
        *,
        constraint: Constraint | None = None,
        special: bool = False,
    ) -> list[Request]:
        """Requests to `run`: for those who want to cancel them from elsewhere."""
        return [self.request(prompt, settings, constraint=constraint, special=special) for prompt in prompts]

    def request(
        self,
        prompt: Prompt,
        settings: Settings,
        *,
        constraint: Constraint | None = None,
        special: bool = False,
        listener: Callable[[Piece], None] | None = None,
    ) -> Request:
        """One request. Raises `SettingsError` if it cannot be carried out.

        `listener` is called with each piece, from the thread that runs the request.
        """
        if constraint is not None and settings.beams:
            raise SettingsError("num_beams cannot follow a grammar: leave out one of both")
        if settings.logprobs is not None and settings.beams:
            raise SettingsError("num_beams has no log-probabilities of tokens: leave out one of both")
        guide = None if constraint is None else self._grammars.guide(constraint)
        return Request(
            prompt,
            settings,
            Sampler(settings, self._defaults, guide),
            limit=self._limit(prompt, settings),
            ends=self._ends | self._special_stops(settings),
            detokenizer=Detokenizer(self.tokenizer, prompt.context, special=special),
            listener=listener,
        )

    def run(self, requests: Sequence[Request]) -> None:
        """Return when all `requests` are done; their errors are in them."""
        self._turns.run(requests)

    def together(self, count: int) -> AbstractContextManager[None]:
        """Within, about `count` prompts come from different threads: they wait a moment for each other."""
        return self._turns.together(count)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of `text`; with `special`, those that the tokenizer puts around every text too.

        Raises `SettingsError` for halves of surrogate pairs, which JSON can write and no tokenizer reads.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise SettingsError(
                f"character {error.start} of the prompt, {text[error.start]!r}, is half of a surrogate pair: "
                "send the whole character"
            ) from error
        with self._tokenizing:
            tokens: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return tokens

    def count(self, text: str) -> int:
        """How many tokens `text` has, without those that are put around."""
        return len(self.encode(text, special=False))

    @property
    def context_size(self) -> int | None:
        """How many tokens prompt and answer may have together; None if the model does not say."""
        if self.model.config.is_encoder_decoder:
            return None
        size = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return size if isinstance(size, int) and size > 0 else None

    def _limit(self, prompt: Prompt, settings: Settings) -> int:
        """How many tokens may come. A prompt that leaves no place for one is an error."""
        size = len(prompt.tokens)
        rest = [settings.max_new_tokens]
        if self.context_size is not None:
            if size >= self.context_size:
                raise SettingsError(
                    f"the prompt has {size} tokens and the model's context {self.context_size}: shorten the prompt"
                )
            rest.append(self.context_size - size)
        if settings.max_length is not None:
            taken = 0 if self.model.config.is_encoder_decoder else size
            if settings.max_length <= taken:
                raise SettingsError(f"the prompt has {size} tokens, and max_length is {settings.max_length}: raise it")
            rest.append(settings.max_length - taken)
        return min(rest)

    @cached_property
    def _defaults(self) -> Defaults:
        return Defaults.of(self._config)

    @cached_property
    def _ends(self) -> frozenset[int]:
        of_model = self._config.eos_token_id
        ends = of_model if isinstance(of_model, list) else [of_model]
        return frozenset(token for token in (*ends, self.tokenizer.eos_token_id) if token is not None)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self._ends)

    @property
    def _padding(self) -> int:
        known = (self._config.pad_token_id, self.tokenizer.pad_token_id, *sorted(self._ends), 0)
        return next(int(token) for token in known if token is not None)

    def _special_stops(self, settings: Settings) -> frozenset[int]:
        """Stop texts that are special tokens, which are no text."""
        special = set(self.tokenizer.all_special_tokens).intersection(settings.stop)
        return frozenset(self.tokenizer.convert_tokens_to_ids(text) for text in special)
