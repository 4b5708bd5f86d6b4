"""OpenVINO GenAI, which reads GGUF files itself, for `benchmarks.runtime`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]
import openvino_genai  # type: ignore[import-not-found]

from benchmarks.peers.runtime_worker import Runner, serve


class OpenVINO(Runner):
    """A GGUF file with a tokenizer, of types that OpenVINO keeps in 4 and 8 bits (Q4_0, Q4_1, Q8_0)."""

    def __init__(self, path: str, threads: int, options: dict[str, Any]) -> None:
        self._path = Path(path)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # or a prompt that it has read before takes no time
        scheduler.cache_size = 1  # GB for keys and values
        self._pipeline = openvino_genai.LLMPipeline(
            path, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads
        )

    @property
    def nbytes(self) -> int:
        """The file's."""
        return self._path.stat().st_size

    def _generate(self, tokens: Sequence[int], new: int) -> Any:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new, True, False
        return self._pipeline.generate(openvino.Tensor(np.array([tokens])), config)

    def prompt(self, tokens: Sequence[int]) -> float:
        """See `Runner.prompt`."""
        start = time.perf_counter()
        self._generate(tokens, 1)
        return time.perf_counter() - start

    def decode(self, tokens: Sequence[int], new: int) -> float:
        """See `Runner.decode`: by its own clock, which leaves the first token out."""
        milliseconds: float = self._generate(tokens, new + 1).perf_metrics.get_tpot().mean
        return milliseconds * new / 1000


if __name__ == "__main__":
    serve(OpenVINO)
