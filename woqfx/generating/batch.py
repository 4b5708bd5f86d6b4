"""A batch of requests through transformers' `generate`, whose loop, caches and families it uses as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from woqfx.generating.request import Request
from woqfx.generating.sampling import Choice


def run_batch(model: Any, requests: Sequence[Request], padding: int, notify: Callable[[], None] = lambda: None) -> None:
    """Run `requests`, whose settings differ in nothing but what each row decides for itself, until all are done.

    Prompts are padded (on the left, or on the right for an encoder) with the token `padding`, which is masked. `notify`
    is called when a request is done while others go on.
    """
    config = _config(model, requests, padding)
    inputs = _padded(requests, padding, left=not model.config.is_encoder_decoder)
    if requests[0].settings.beams:
        _search(model, requests[0], inputs, config)
        return
    choices: list[Choice | None] = [None] * len(requests)
    model.generate(
        **inputs,
        generation_config=config,
        logits_processor=LogitsProcessorList([_Chooser(requests, choices)]),
        stopping_criteria=StoppingCriteriaList([_Watch(requests, choices, notify)]),
    )
    for request in requests:
        request.end("length")  # transformers' own limits, such as max_time


def hand_in(model: Any, request: Request, padding: int) -> Iterator[int] | None:
    """Have a model that can `submit` choose a request's tokens by itself; None if it does not know how.

    What is returned has `cancel`.
    """
    words = request.sampler.in_words
    encodes = model.config.is_encoder_decoder
    if words is None or request.settings.beams or (encodes and words["repetition_penalty"] != 1):
        return None  # a penalty counts an encoder's input too, which transformers' does not
    config = _config(model, [request], padding)
    config.eos_token_id = sorted(request.ends) or None
    for name, value in words.items():
        setattr(config, name, value)
    answer: Iterator[int] = model.submit(
        torch.tensor(request.prompt.tokens), seed=request.sampler.seed, generation_config=config
    )
    return answer


class _Chooser(LogitsProcessor):
    """The last processor: each row's sampler chooses, and leaves transformers no other token."""

    def __init__(self, requests: Sequence[Request], choices: list[Choice | None]) -> None:
        self._requests = requests
        self._choices = choices

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, request in enumerate(self._requests):
            if request.done.is_set():
                continue
            choice = self._choices[row]
            if choice is None:  # else it was chosen already, and the step that it was for is made again
                try:
                    choice = request.sampler.choose(scores[row], (*request.prompt.tokens, *request.tokens))
                except Exception as error:  # a constraint that cannot go on ends its own request alone
                    request.fail(error)
                    continue
            self._choices[row] = choice
            scores[row] = float("-inf")
            scores[row, choice.token] = 0.0
        return scores


class _Watch(StoppingCriteria):
    """Hands each row's token to its request, and stops the rows that are done."""

    def __init__(self, requests: Sequence[Request], choices: list[Choice | None], notify: Callable[[], None]) -> None:
        self._requests = requests
        self._choices = choices
        self._notify = notify

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        ended = False
        for row, request in enumerate(self._requests):
            choice, self._choices[row] = self._choices[row], None
            if choice is not None:
                request.take(choice)
                ended |= request.done.is_set()
        if ended:
            self._notify()
        return torch.tensor([request.done.is_set() for request in self._requests], device=input_ids.device)


class _Abort(StoppingCriteria):
    def __init__(self, request: Request) -> None:
        self._request = request

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full(input_ids.shape[:1], self._request.cancelled, device=input_ids.device)


def _search(model: Any, request: Request, inputs: dict[str, torch.Tensor], config: Any) -> None:
    """Transformers searches whole answers; the best one's tokens are given to the request."""
    settings = request.settings
    config.do_sample = bool(settings.temperature)
    config.temperature, config.top_k, config.top_p = settings.temperature or None, settings.top_k, settings.top_p
    config.min_p, config.repetition_penalty = settings.min_p, settings.repetition_penalty
    with torch.random.fork_rng(devices=[]):
        if settings.seed is None:
            torch.seed()
        else:
            torch.manual_seed(settings.seed)
        found = model.generate(
            **inputs, generation_config=config, stopping_criteria=StoppingCriteriaList([_Abort(request)])
        )
    skipped = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    for token in found[0, skipped:].tolist():
        if not request.done.is_set():
            request.take(Choice(token))
    request.end("cancelled" if request.cancelled else "length")


def _config(model: Any, requests: Sequence[Request], padding: int) -> Any:
    """The model's own generation config; what each row decides for itself is taken out of it."""
    config = copy.deepcopy(model.generation_config)
    config.do_sample, config.num_beams, config.num_return_sequences = False, 1, 1
    config.temperature = config.top_k = config.top_p = config.min_p = config.typical_p = None
    config.repetition_penalty = None
    config.max_length, config.max_new_tokens = None, max(request.limit for request in requests)
    config.stop_strings, config.return_dict_in_generate = None, False
    config.pad_token_id = padding
    for name, value in requests[0].settings.more.items():
        setattr(config, name, value)
    return config


def _padded(requests: Sequence[Request], padding: int, *, left: bool) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask [requests, longest prompt]."""
    longest = max(len(request.prompt.tokens) for request in requests)
    ids = torch.full((len(requests), longest), padding)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(requests):
        size = len(request.prompt.tokens)
        place = slice(longest - size, longest) if left else slice(0, size)
        ids[row, place] = torch.tensor(request.prompt.tokens, dtype=ids.dtype)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}
