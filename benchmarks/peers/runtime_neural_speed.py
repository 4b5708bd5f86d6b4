"""Neural Speed, the original's runtime, for `benchmarks.runtime`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neural_speed import Model  # type: ignore[import-not-found]

from benchmarks.peers.runtime_worker import Runner, serve

_BOS = 1  # without it in front, it computes nothing and does not say so
_CONTEXT = 1024


class NeuralSpeed(Runner):
    """A file that `make_neural_speed` wrote."""

    def __init__(self, path: str, threads: int, options: dict[str, Any]) -> None:
        self._path, self._model = Path(path), Model()
        self._model.init_from_bin(
            "llama", path, threads=threads, ctx_size=_CONTEXT, n_batch=512, do_sample=False, repetition_penalty=1.0
        )
        self._reading = False

    @property
    def nbytes(self) -> int:
        """The file's."""
        return self._path.stat().st_size

    def begin(self) -> None:
        """See `Runner.begin`."""
        self._model.model.reinit()
        self._reading = True

    def read(self, tokens: Sequence[int]) -> int:
        """See `Runner.read`. After a prompt it goes on with the token that it chose."""
        given = [[_BOS, *tokens[1:]]] if self._reading else []
        self._reading = False
        answer: list[list[int]] = self._model.model.generate(input_ids=given)
        if not answer or not answer[0]:
            raise RuntimeError("Neural Speed gave no token")
        return answer[0][0]


if __name__ == "__main__":
    serve(NeuralSpeed)
