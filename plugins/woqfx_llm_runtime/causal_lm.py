"""A model of the runtime as transformers sees it: `forward`, a cache, and `generate` with all that it can do."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.modeling_outputs import CausalLMOutputWithPast

from woqfx_llm_runtime.answer import Answer
from woqfx_llm_runtime.cache import RuntimeCache
from woqfx_llm_runtime.requests.choosing import Choose, look_up
from woqfx_llm_runtime.requests.errors import ContextError, RequestError
from woqfx_llm_runtime.requests.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from woqfx_llm_runtime._core import Engine
    from woqfx_llm_runtime.requests.request import Ends
    from woqfx_llm_runtime.requests.scheduler import Scheduler

#: Its methods ask for a protocol of private attributes as `self`.
_loops: Any = GenerationMixin


class RuntimeConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """What transformers knows the classes of the runtime by. Models have the configuration of what they run."""

    model_type = "woqfx_llm_runtime"


class RuntimeModel(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """A causal language model on the native engine.

    `generate` takes transformers' arguments. Greedy search, sampling and prompt lookup run on the engine's own
    scheduler, whatever processors, criteria and streamers they come with: calls from several threads share each step.
    All else (beam search, assistant models, outputs of scores) goes through transformers' loops and `forward`.
    `submit` hands a request in without waiting for it.
    """

    main_input_name = "input_ids"
    config_class = RuntimeConfig

    def __init__(self, config: Any, scheduler: Scheduler, summary: str) -> None:
        config = copy.deepcopy(config)
        config._attn_implementation = config._experts_implementation = "eager"  # there is no choice here
        super().__init__(config)
        self._scheduler, self._summary = scheduler, summary

    @property
    def engine(self) -> Engine:
        """What computes."""
        return self._scheduler.engine

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of logits; what the engine computes in is the weights' affair."""
        return torch.float32

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return self._summary

    # -- one step ------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RuntimeCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits float32 [B, T, V] of `input_ids` int64 [B, T], which follow those in `past_key_values`.

        `attention_mask` [B, past + T] tells tokens from padding, which may stand anywhere: padding computes nothing,
        and its logits are 0. Positions count a row's tokens; `position_ids` must agree. `logits_to_keep` gives those of
        the last columns alone, or of the columns that a tensor names.
        """
        refuse(inputs_embeds=inputs_embeds, labels=labels, **others)
        if input_ids is None or input_ids.dim() != 2:
            raise RequestError("the runtime takes input_ids [rows, tokens]: pass tokens, not embeddings")
        check_length(input_ids)
        cache = own_cache(past_key_values, self.engine)
        cache.begin(len(input_ids))
        keep = bool(self.config.use_cache if use_cache is None else use_cache) or past_key_values is not None
        mask = own_mask(attention_mask, input_ids, cache)
        self._check_positions(position_ids, mask, cache)
        logits = self._compute(input_ids, mask, cache, logits_to_keep)
        output = CausalLMOutputWithPast(logits=logits, past_key_values=cache if keep else None)
        if not keep:
            cache.reset()
        return output.to_tuple() if return_dict is False else output

    def _compute(self, input_ids: Tensor, mask: Tensor, cache: RuntimeCache, logits_to_keep: int | Tensor) -> Tensor:
        """Run the rows that have tokens; what is not computed is 0."""
        tokens = input_ids[mask]
        check_tokens(tokens, self.engine.vocab_size)
        last = logits_to_keep if isinstance(logits_to_keep, int) and logits_to_keep > 0 else input_ids.shape[1]
        shown = mask[:, -last:]
        counts, wanted = mask.sum(1).tolist(), shown.sum(1).tolist()
        rows = [row for row, count in enumerate(counts) if count]
        found = torch.empty(sum(wanted), self.engine.vocab_size)
        if rows:
            slots, given = [cache.slots[row] for row in rows], [counts[row] for row in rows]
            asked, tokens = [wanted[row] for row in rows], tokens.to(torch.int64).contiguous()
            self._making_room(lambda: self.engine.forward(slots, given, asked, tokens, found))
        cache.mask = torch.cat([cache.mask, mask], dim=1)
        if bool(shown.all()):
            logits = found.view(*shown.shape, -1)
        else:
            logits = torch.zeros(*shown.shape, self.engine.vocab_size)
            logits[shown] = found
        return logits[:, logits_to_keep] if isinstance(logits_to_keep, Tensor) else logits

    def _making_room(self, compute: Callable[[], None]) -> None:
        while True:
            try:
                return compute()
            except self._scheduler.out_of_memory:
                if not self._scheduler.slots.make_room():
                    raise

    def _check_positions(self, given: Tensor | None, mask: Tensor, cache: RuntimeCache) -> None:
        if given is None:
            return
        before = cache.mask.sum(1, keepdim=True)
        own = before + mask.cumsum(1) - 1
        if not bool((given.expand_as(own)[mask] == own[mask]).all()):
            raise RequestError(
                "position_ids are not those of the tokens that attention_mask leaves, counted from 0: the runtime "
                "knows no others; leave position_ids out"
            )

    # -- generation ----------------------------------------------------------------------------------

    def submit(self, input_ids: Tensor, *, seed: int | None = None, **settings: Any) -> Answer:
        """Hand in one sequence, int64 [n] or [1, n], with `generate`'s arguments; its tokens come from the answer.

        Requests of all threads share the engine's steps; a sequence's tokens do not depend on the others. With a
        `seed`, sampling gives what `generate` gives after `torch.manual_seed(seed)`. Raises `ContextError` for what is
        longer than the model allows, and `RequestError` for settings that only `generate` itself can do.
        """
        given: Any = input_ids
        ids = given[None] if isinstance(given, Tensor) and given.dim() == 1 else given
        check_rows(ids)
        if len(ids) != 1:
            raise RequestError(f"submit takes one sequence, not {len(ids)}: call it for each")
        generator = torch.Generator()
        generator.manual_seed(int(torch.randint(1 << 62, ())) if seed is None else seed)

        def hand_in(model: RuntimeModel, input_ids: Tensor, **prepared: Any) -> Answer:
            request = model._request(input_ids, generator=generator, **prepared)
            if request is None:
                raise RequestError("these settings need transformers' own loop: call generate")
            return Answer(model._scheduler, request)

        answer: Answer = _loops.generate(self, ids, custom_generate=hand_in, **settings)
        return answer

    def _sample(self, input_ids: Tensor, **prepared: Any) -> Any:  # type: ignore[override]
        """Greedy search and sampling, which `generate` has prepared."""
        request = self._request(input_ids, **prepared)
        if request is None:
            return _loops._sample(self, input_ids, **prepared)
        return self._run(request, prepared.get("streamer"))

    def _assisted_decoding(self, input_ids: Tensor, **prepared: Any) -> Any:  # type: ignore[override]
        """Prompt lookup, if it is that."""
        lookup = prepared["generation_config"].prompt_lookup_num_tokens is not None
        request = self._request(input_ids, **prepared) if lookup else None
        if request is None:
            return _loops._assisted_decoding(self, input_ids, **prepared)
        return self._run(request, prepared.get("streamer"))

    def _request(
        self,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        generator: torch.Generator | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        sources: Sequence[Tensor] | None = None,
        **others: Any,
    ) -> Request | None:
        """The request that `generate` has prepared; None if the scheduler cannot run it as transformers' loop would."""
        check_length(input_ids)
        config: Any = generation_config
        lookup, rows = config.prompt_lookup_num_tokens, len(input_ids)
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        padding = (~mask).sum(1)
        if (
            config.return_dict_in_generate
            or config.num_beams > 1
            or others.get("inputs_embeds") is not None
            or others.get("assistant_model") is not None
            or (past_key_values is not None and past_key_values.get_seq_length())
            or (lookup is not None and rows > 1)
            or mask.shape != input_ids.shape
            or not bool((mask == (torch.arange(mask.shape[1]) >= padding[:, None])).all())
            or int(padding.max()) == mask.shape[1]
        ):
            return None
        check_tokens(input_ids, self.engine.vocab_size)
        guess = None
        if lookup is not None:
            longest = config.max_matching_ngram_size or 2
            guess = lambda tokens: look_up(tokens, count=lookup, longest=longest)  # noqa: E731 - a value, like the rest
        plain = not config.do_sample and not logits_processor
        stops, ends = _endings(stopping_criteria)
        return Request(
            input_ids,
            padding.tolist(),
            sources=None if sources is None else [source.numpy() for source in sources],
            most=config.max_length,
            pad=0 if config._pad_token_tensor is None else int(config._pad_token_tensor),
            choose=None if plain else Choose(logits_processor, sample=config.do_sample, generator=generator),
            stops=stops,
            ends=ends,
            draft=guess,
        )

    def _run(self, request: Request, streamer: Any) -> Tensor:
        """Wait for a request, and hand its tokens to the streamer as they come."""
        scheduler, given = self._scheduler, request.prompt_columns
        scheduler.add(request)
        try:
            while not request.finished:
                scheduler.wait(request, given)
                if streamer is not None:
                    for column in range(given, request.columns):
                        streamer.put(request.tokens[:, column].clone())
                given = request.columns
        finally:
            if not request.finished:
                scheduler.cancel(request)
        if request.error is not None:
            raise request.error
        if streamer is not None:
            streamer.end()
        return request.tokens.clone()

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: Any, *others: Any
    ) -> None:
        """For transformers' own loops: keys and values are the engine's."""
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise RequestError(
                f"cache_implementation {generation_config.cache_implementation!r}: keys and values are the runtime's "
                "own; leave it out, and see the backend's options kv and max_memory"
            )
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = RuntimeCache(self.engine)

    def _prepare_model_inputs(self, *given: Any, **named: Any) -> Any:
        inputs, name, model_kwargs = _loops._prepare_model_inputs(self, *given, **named)
        if name == self.main_input_name:
            check_rows(inputs)
        return inputs, name, model_kwargs

    def _validate_generated_length(self, generation_config: Any, input_ids_length: int, *others: Any) -> None:
        _loops._validate_generated_length(self, generation_config, input_ids_length, *others)
        if generation_config.max_length > self.engine.context:
            raise ContextError(
                f"a prompt of {input_ids_length} tokens and {generation_config.max_length - input_ids_length} new ones "
                f"are more than the {self.engine.context} that {self.config.model_type} was made for: shorten the "
                "prompt, or lower max_new_tokens"
            )

    def __reduce__(self) -> Any:
        raise RequestError(
            "a model of the runtime can be neither copied nor pickled, for its weights are the engine's: load the "
            "checkpoint again, or share this one, which all threads may call"
        )

    def _save_to_state_dict(self, *_: Any) -> None:
        """Weights are the engine's, packed: there is nothing for a state dict."""


AutoModelForCausalLM.register(RuntimeConfig, RuntimeModel)  # else its pipelines say that it is not supported


def refuse(**arguments: Any) -> None:
    """Raise `RequestError` for an argument that says anything."""
    for name, value in arguments.items():
        if value is not None and value is not False:
            raise RequestError(f"{name}: the runtime computes logits of tokens alone; use backend torch_cpu")


def own_cache(given: Any, engine: Engine) -> RuntimeCache:
    """What a forward has returned, or a new one. Raises `RequestError`."""
    if given is None:
        return RuntimeCache(engine)
    if not isinstance(given, RuntimeCache):
        raise RequestError(
            f"past_key_values is a {type(given).__name__}: pass what this model's forward has returned, or nothing"
        )
    return given


def own_mask(given: Tensor | None, input_ids: Tensor, cache: RuntimeCache) -> Tensor:
    """Which of `input_ids` are tokens, bool [B, T], for the rows of a cache. Raises `RequestError`."""
    seen = cache.mask
    if len(cache.slots) != len(input_ids):
        raise RequestError(f"past_key_values are of {len(cache.slots)} rows, input_ids of {len(input_ids)}")
    if given is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    columns = input_ids.shape[1]
    if given.dim() != 2 or len(given) != len(input_ids) or given.shape[1] not in (columns, seen.shape[1] + columns):
        raise RequestError(
            f"attention_mask has shape {list(given.shape)}: the runtime takes [rows, tokens so far and new], here "
            f"{[len(input_ids), seen.shape[1] + columns]}"
        )
    return given[:, -columns:].bool()


def check_rows(input_ids: Any) -> None:
    """Raise `RequestError` for what is no tensor [rows, tokens]."""
    if not isinstance(input_ids, Tensor):
        raise RequestError(f"input_ids are a {type(input_ids).__name__}: pass a tensor [rows, tokens]")
    if input_ids.dim() != 2:
        raise RequestError(
            f"input_ids have shape {list(input_ids.shape)}: the runtime takes [rows, tokens]; of one sequence, pass "
            "input_ids[None]"
        )


def check_length(input_ids: Tensor) -> None:
    """Raise `RequestError` for rows [B, T] of no token at all."""
    if not input_ids.shape[-1]:
        raise RequestError(
            "the prompt has no token, and there is nothing to go on from: begin with the tokenizer's bos_token_id, or "
            "with some text"
        )


def check_tokens(input_ids: Tensor, vocab_size: int) -> None:
    """Raise `RequestError` for a token that is none of the vocabulary's."""
    if input_ids.is_floating_point():
        raise RequestError(f"input_ids are {input_ids.dtype}: tokens are whole numbers; pass what the tokenizer gives")
    if input_ids.numel() and (int(input_ids.min()) < 0 or int(input_ids.max()) >= vocab_size):
        odd = input_ids[(input_ids < 0) | (input_ids >= vocab_size)][0]
        raise RequestError(f"token {int(odd)} is not in the vocabulary of {vocab_size}: is the tokenizer the model's?")


def _endings(criteria: Any) -> tuple[frozenset[int], Ends | None]:
    """Stopping criteria as tokens that end a row, and all others but the length, which the request itself keeps to."""
    tokens = [one.eos_token_id.flatten().tolist() for one in criteria if isinstance(one, EosTokenCriteria)]
    others = [one for one in criteria if not isinstance(one, (EosTokenCriteria, MaxLengthCriteria))]
    ends = (lambda sofar: torch.stack([one(sofar, None) for one in others]).any(0)) if others else None
    return frozenset(int(token) for some in tokens for token in some), ends
