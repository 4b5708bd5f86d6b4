"""llama.cpp, through `llama_decode` of its C interface, for `benchmarks.runtime`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp  # type: ignore[import-not-found]

from benchmarks.peers.runtime_worker import Runner, serve

_CONTEXT = 1024


class LlamaCpp(Runner):
    """A GGUF file."""

    def __init__(self, path: str, threads: int, options: dict[str, Any]) -> None:
        llama_cpp.llama_backend_init()
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        self._path = Path(path)
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = _CONTEXT, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
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
        if failed := llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError(f"llama_decode returned {failed}")
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(logits[0] > 0) + 5  # any token does: looking for the likeliest in Python would take longer


if __name__ == "__main__":
    serve(LlamaCpp)
