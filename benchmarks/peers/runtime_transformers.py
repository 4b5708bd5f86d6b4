"""transformers with PyTorch in bfloat16, for `benchmarks.runtime`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.runtime_worker import Runner, serve


class Transformers(Runner):
    """A float model's folder."""

    def __init__(self, path: str, threads: int, options: dict[str, Any]) -> None:
        torch.set_num_threads(threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        self._cache: Any = None

    @property
    def nbytes(self) -> int:
        """Of all parameters."""
        return sum(parameter.nbytes for parameter in self._model.parameters())

    def begin(self) -> None:
        """See `Runner.begin`."""
        self._cache = None

    def read(self, tokens: Sequence[int]) -> int:
        """See `Runner.read`."""
        with torch.inference_mode():
            out = self._model(
                input_ids=torch.tensor([tokens]), past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
        self._cache = out.past_key_values
        return int(out.logits[0, -1, 0] > 0) + 5


if __name__ == "__main__":
    serve(Transformers)
