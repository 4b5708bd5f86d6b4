"""llama.cpp, through `llama_decode` of its C interface, for `benchmarks.runtime`."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp

from benchmarks.peers.runtime_worker import Runner, serve

_CONTEXT, _SEQUENCES = 1024, 8


class LlamaCpp(Runner):
    """A GGUF file; option `context` is the longest sequence."""

    def __init__(self, path: str, threads: int, options: dict[str, Any]) -> None:
        llama_cpp.llama_backend_init()
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        self._path = Path(path)
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        context = int(options.get("context", _CONTEXT))
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = context * _SEQUENCES, context, 512, _SEQUENCES
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp has no room for {path} with a context of {params.n_ctx}")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    @property
    def nbytes(self) -> int:
        """The file's."""
        return self._path.stat().st_size

    def begin(self) -> None:
        """See `Runner.begin`."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def read(self, tokens: Sequence[int]) -> int:
        """See `Runner.read`."""
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        self._decode(llama_cpp.llama_batch_get_one(array, len(tokens)))
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(logits[0] > 0) + 5  # any token does: looking for the likeliest in Python would take longer

    def rows(self, count: int, tokens: Sequence[int], new: int) -> float:
        """See `Runner.rows`: each step is one batch with a token of each sequence."""
        self.begin()
        for row in range(count):
            self._step([(token, place, row) for place, token in enumerate([3 + row, *tokens])])
        start = time.perf_counter()
        for place in range(len(tokens) + 1, len(tokens) + 1 + new):
            self._step([(5 + row, place, row) for row in range(count)])
            for row in range(count):
                llama_cpp.llama_get_logits_ith(self._context, row)
        return time.perf_counter() - start

    def _step(self, tokens: Sequence[tuple[int, int, int]]) -> None:
        """Compute tokens, each with its position and sequence; logits of the last of each sequence."""
        last = {row: number for number, (_, _, row) in enumerate(tokens)}
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for number, (token, place, row) in enumerate(tokens):
            batch.token[number], batch.pos[number] = token, place
            batch.n_seq_id[number], batch.seq_id[number][0] = 1, row
            batch.logits[number] = last[row] == number
        self._decode(batch)
        llama_cpp.llama_batch_free(batch)

    def _decode(self, batch: Any) -> None:
        if failed := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {failed}")


if __name__ == "__main__":
    serve(LlamaCpp)
