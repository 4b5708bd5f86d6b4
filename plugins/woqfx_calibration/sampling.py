"""Having a model write: rows of tokens, sampled from its own distribution."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor

from woqfx import single_threaded

_BATCH = 16  # rows that are written side by side
_NGRAM = 16  # tokens that nobody repeats by chance


class Novelty:
    """What share of a row has not been there before, in it or in the rows that were taken."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, ...]] = set()

    def take(self, row: Tensor, least: float) -> bool:
        """Take a row if at least this share of its runs of 16 tokens is new."""
        ids = row.tolist()
        width = min(_NGRAM, len(ids))
        runs = [tuple(ids[start : start + width]) for start in range(len(ids) - width + 1)]
        new = set(runs) - self._seen
        if len(new) < least * len(runs):
            return False
        self._seen |= new
        return True


def write_rows(model: nn.Module, starts: Tensor, length: int, seed: int) -> Tensor:
    """Continue each of `starts` int64 [R, S] to `length` tokens: int64 [R, length].

    Tokens are sampled at temperature 1 with a generator for each batch, and an end of text is followed by the next one.
    The same arguments give the same tokens on any number of threads: each batch is one thread's.
    """
    batches = [starts[first : first + _BATCH] for first in range(0, len(starts), _BATCH)]
    with single_threaded(), torch.no_grad(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(_continue, model, batch, length, seed + number) for number, batch in enumerate(batches)]
        return torch.cat([job.result() for job in jobs])


def _continue(model: Any, starts: Tensor, length: int, seed: int) -> Tensor:
    vocabulary = model.get_input_embeddings().num_embeddings
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=length - starts.shape[1],
        do_sample=False,
        # No token has this id, so nothing ends a row.
        eos_token_id=vocabulary,
        pad_token_id=0,
    )
    sampler = _Sampler(seed)
    with torch.no_grad():  # of this thread
        written: Tensor = model.generate(
            starts, attention_mask=torch.ones_like(starts), generation_config=config, logits_processor=[sampler]
        )
    return written


class _Sampler(LogitsProcessor):
    """Adds Gumbel noise: the largest of the sums is a sample of the softmax. No generator but its own is touched."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.rand(scores.shape, generator=self._generator, dtype=torch.float64)
        return scores - torch.log(-torch.log(uniform.clamp_min_(1e-300))).float()
