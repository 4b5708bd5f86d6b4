"""transformers with PyTorch in bfloat16, for `benchmarks.runtime`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from benchmarks.peers.runtime_worker import Runner, serve
from woqfx.speed import reader_of


class Transformers(Runner):
    """A float model's folder."""

    def __init__(self, path: str, threads: int, options: dict[str, Any]) -> None:
        torch.set_num_threads(threads)
        two = AutoConfig.from_pretrained(path).is_encoder_decoder
        kind = AutoModelForSeq2SeqLM if two else AutoModelForCausalLM
        self._hold(kind.from_pretrained(path, dtype=torch.bfloat16).eval())

    def _hold(self, model: Any) -> None:
        self._model, self._reader = model, reader_of(model)

    @property
    def nbytes(self) -> int:
        """Of all parameters."""
        return sum(parameter.nbytes for parameter in self._model.parameters())

    def begin(self) -> None:
        """See `Runner.begin`."""
        self._reader.begin()

    def read(self, tokens: Sequence[int]) -> int:
        """See `Runner.read`."""
        return self._reader.read(tokens)


if __name__ == "__main__":
    serve(Transformers)
