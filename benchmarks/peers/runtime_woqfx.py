"""woqfx's LLM runtime, for `benchmarks.runtime`: its engine's steps, as llama.cpp is measured by `llama_decode`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

import woqfx
from benchmarks.peers.runtime_worker import Runner, serve

#: The token that a T5's decoder begins with: its padding.
_START = 0


class Woqfx(Runner):
    """A checkpoint on the runtime; `options` are the backend's, but for `generate`, which measures that instead."""

    def __init__(self, path: str, threads: int, options: dict[str, Any]) -> None:
        torch.set_num_threads(threads)
        self._model: Any = woqfx.load(path, backend="llm_runtime", backend_options=options)
        self._engine: Any = self._model.engine
        self._logits = torch.empty(1, self._engine.vocab_size)
        self._encodes = bool(self._model.config.is_encoder_decoder)
        self._slot, self._source_is_read = self._engine.create(), False

    @property
    def nbytes(self) -> int:
        """What weights take in memory."""
        return int(self._engine.weight_bytes)

    @property
    def bytes_per_token(self) -> int:
        """See `Runner.bytes_per_token`."""
        return int(self._engine.bytes_per_token)

    def begin(self) -> None:
        """See `Runner.begin`."""
        self._engine.free(self._slot)
        self._slot, self._source_is_read = self._engine.create(), False

    def read(self, tokens: Sequence[int]) -> int:
        """See `Runner.read`. What an encoder-decoder reads first is its source."""
        if self._encodes and not self._source_is_read:
            self._engine.encode([self._slot], [len(tokens)], torch.tensor(tokens))
            self._source_is_read, tokens = True, [_START]
        self._engine.forward([self._slot], [len(tokens)], [1], torch.tensor(tokens), self._logits)
        return int(self._logits[0, 0] > 0) + 5

    def apart(self, tokens: Sequence[int], length: int) -> float:
        """See `Runner.apart`."""
        counts = [len(tokens[first : first + length]) for first in range(0, len(tokens), length)]
        slots = [self._engine.create() for _ in counts]
        wanted = [*[0] * (len(counts) - 1), 1]
        start = time.perf_counter()
        self._engine.forward(slots, counts, wanted, torch.tensor(tokens), self._logits)
        seconds = time.perf_counter() - start
        for slot in slots:
            self._engine.free(slot)
        return seconds

    def rows(self, count: int, tokens: Sequence[int], new: int) -> float:
        """See `Runner.rows`: through `submit`, choice of tokens and Python included."""
        settings = {"do_sample": False, "eos_token_id": None, "max_new_tokens": new + 1}
        prompts = [torch.tensor([3 + row, *tokens]) for row in range(count)]
        answers = [self._model.submit(prompt, **settings) for prompt in prompts]
        for answer in answers:
            next(answer)
        start = time.perf_counter()
        for answer in answers:
            answer.result()
        return time.perf_counter() - start


if __name__ == "__main__":
    serve(Woqfx)
