"""How fast a whole model reads a prompt, and generates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from woqfx.errors import WoqfxError

_ROUNDS = 5


class Reader(Protocol):
    """A model that reads tokens, one sequence at a time."""

    def begin(self) -> None:
        """Forget all tokens."""

    def read(self, tokens: Sequence[int]) -> int:
        """Read more tokens; the likeliest next one."""


@dataclass(frozen=True)
class Speed:
    """Tokens a second: medians of `rounds`."""

    prompt: float
    new: float
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


class ModelReader:
    """A model of transformers, or one that a backend runs by itself."""

    def __init__(self, model: Any) -> None:
        self._model: Any = model
        self._cache: Any = None
        text = model.config.get_text_config()
        self.vocab_size = int(text.vocab_size)
        self._positions: int | None = getattr(text, "max_position_embeddings", None)

    def check(self, prompt: int, new: int) -> None:
        """Raise `WoqfxError` if the model takes fewer tokens than a prompt of `prompt` and `new` ones after it."""
        longest = self._longest(prompt, new)
        if self._positions is not None and longest > self._positions:
            raise WoqfxError(
                f"a prompt of {prompt} tokens and {new} new ones are beyond the {self._positions} positions of "
                f"{type(self._model).__name__}: ask for fewer (--prompt, --new)"
            )

    def _longest(self, prompt: int, new: int) -> int:
        """Of the sequences that are read."""
        return prompt + new

    def begin(self) -> None:
        """See `Reader.begin`."""
        self._cache = None

    def read(self, tokens: Sequence[int]) -> int:
        """See `Reader.read`."""
        with torch.inference_mode():
            given = {"past_key_values": self._cache, "use_cache": True, "logits_to_keep": 1}
            out = self._model(input_ids=torch.tensor([tokens]), **given)
        self._cache = out.past_key_values
        return int(out.logits[0, -1].argmax())


class Seq2SeqReader(ModelReader):
    """An encoder-decoder: what it reads first is its source, and then come the tokens of its decoder, from one on."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._start = int(model.config.decoder_start_token_id or 0)
        self._encoded: Any = None

    def _longest(self, prompt: int, new: int) -> int:
        return max(prompt, 1 + new)

    def read(self, tokens: Sequence[int]) -> int:
        """See `Reader.read`. The source's next token is the decoder's first."""
        given: dict[str, Any] = {"encoder_outputs": self._encoded}
        if self._cache is None:
            given, tokens = {"input_ids": torch.tensor([tokens])}, [self._start]
        with torch.inference_mode():
            out = self._model(
                decoder_input_ids=torch.tensor([tokens]), past_key_values=self._cache, use_cache=True, **given
            )
        if self._cache is None:
            self._encoded = (out.encoder_last_hidden_state,)
        self._cache = out.past_key_values
        return int(out.logits[0, -1].argmax())


def reader_of(model: Any) -> ModelReader:
    """What reads tokens with a model of transformers, or one that a backend runs by itself."""
    return Seq2SeqReader(model) if model.config.is_encoder_decoder else ModelReader(model)


class LlamaCppReader:
    """A GGUF file in llama.cpp, by its package llama-cpp-python. Raises `WoqfxError` without that."""

    def __init__(self, path: Path, context: int, threads: int) -> None:
        try:
            from llama_cpp import Llama
        except ImportError as error:
            raise WoqfxError(
                "llama.cpp takes turns only where it is installed: pip install llama-cpp-python, which builds it"
            ) from error
        if not path.is_file():
            raise WoqfxError(f"{path} is not a file: --against takes a GGUF file")
        settings = {"n_batch": 512, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
        self._model: Any = Llama(str(path), n_ctx=context, **settings)

    def begin(self) -> None:
        """See `Reader.begin`."""
        self._model.reset()

    def read(self, tokens: Sequence[int]) -> int:
        """See `Reader.read`."""
        self._model.eval(tokens)
        return int(self._model.sample(temp=0.0))


def take_turns(readers: Mapping[str, Reader], prompt: int, new: int, vocab_size: int) -> dict[str, Speed]:
    """Let each read a prompt of `prompt` tokens and make `new` ones, one after the other, several times over."""
    tokens = [3 + i * 7919 % max(1, vocab_size - 3) for i in range(prompt)]
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for _ in range(_ROUNDS + 1):
        for name, reader in readers.items():
            reader.begin()
            start = time.perf_counter()
            token = reader.read(tokens)
            between = time.perf_counter()
            for _ in range(new):
                token = reader.read([token])
            taken[name].append((prompt / (between - start), new / (time.perf_counter() - between)))
    counted = {name: found[1:] for name, found in taken.items()}  # the first round warms up
    return {
        name: Speed(statistics.median(p for p, _ in found), statistics.median(n for _, n in found), _ROUNDS)
        for name, found in counted.items()
    }
