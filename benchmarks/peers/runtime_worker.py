"""Somebody's language model in a process of its own, which times it when it is asked.

Runs in the peers' environments: imports nothing of woqfx. A request is a line of JSON on standard input, an answer a
line on standard output; `benchmarks.runtime` holds the other end. What libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any


class Runner(ABC):
    """A loaded model that can read tokens, one sequence at a time."""

    @abstractmethod
    def __init__(self, path: str, threads: int, options: dict[str, Any]) -> None:
        """Load the model at `path`."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """What its weights take."""

    @property
    def bytes_per_token(self) -> int | None:
        """What it reads of its weights for each token that it generates, if it says so."""
        return None

    def begin(self) -> None:
        """Forget all tokens."""
        raise NotImplementedError

    def read(self, tokens: Sequence[int]) -> int:
        """Read more tokens; the likeliest next one, or any."""
        raise NotImplementedError

    def prompt(self, tokens: Sequence[int]) -> float:
        """Seconds for a prompt, up to the first token."""
        self.begin()
        start = time.perf_counter()
        self.read(tokens)
        return time.perf_counter() - start

    def decode(self, tokens: Sequence[int], new: int) -> float:
        """Seconds for `new` tokens, one at a time, after a prompt, which is not counted."""
        self.begin()
        token = self.read(tokens)
        start = time.perf_counter()
        for _ in range(new):
            token = self.read([token])
        return time.perf_counter() - start

    def apart(self, tokens: Sequence[int], length: int) -> float:
        """Seconds for the tokens as sequences of `length`, which see nothing of each other: a prompt's other work."""
        raise NotImplementedError(f"{type(self).__name__} has no batches of prompts")

    def rows(self, count: int, tokens: Sequence[int], new: int) -> float:
        """Seconds for `new` tokens of each of `count` sequences together, prompts not counted."""
        raise NotImplementedError(f"{type(self).__name__} has no batches")


def tokens_of(count: int) -> list[int]:
    """The same tokens for everyone, of any vocabulary beyond 32000."""
    return [3 + (i * 7919) % 30000 for i in range(count)]


class Worker:
    """Answers requests."""

    def __init__(self, kind: type[Runner], threads: int) -> None:
        self._kind, self._threads = kind, threads
        self._models: dict[str, Runner] = {}

    def load(self, name: str, path: str, options: dict[str, Any]) -> dict[str, Any]:
        """Load a model under a name."""
        start = time.perf_counter()
        model = self._kind(path, self._threads, options)
        self._models[name] = model
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "nbytes": model.nbytes, "bytes_per_token": model.bytes_per_token}

    def forget(self, name: str) -> dict[str, Any]:
        """Let a model go."""
        del self._models[name]
        return {}

    def prompt(self, name: str, count: int) -> dict[str, Any]:
        """Read a prompt of so many tokens."""
        return {"seconds": self._models[name].prompt(tokens_of(count))}

    def decode(self, name: str, after: int, count: int) -> dict[str, Any]:
        """Generate so many tokens, one at a time, after a prompt of `after` tokens, which is not timed."""
        return {"seconds": self._models[name].decode(tokens_of(after), count)}

    def long(self, name: str, after: int, count: int) -> dict[str, Any]:
        """Read a prompt of `after` tokens and generate `count`, both timed."""
        model = self._models[name]
        seconds = model.prompt(tokens_of(after))
        start = time.perf_counter()
        for token in tokens_of(count):
            model.read([token])
        return {"prompt": seconds, "decode": time.perf_counter() - start}

    def apart(self, name: str, count: int, length: int) -> dict[str, Any]:
        """Read so many tokens as prompts of `length` together."""
        return {"seconds": self._models[name].apart(tokens_of(count), length)}

    def batch(self, name: str, rows: int, after: int, count: int) -> dict[str, Any]:
        """Generate so many tokens of each of `rows` sequences together."""
        return {"seconds": self._models[name].rows(rows, tokens_of(after), count)}


def serve(kind: type[Runner]) -> None:
    """Answer what comes on standard input, until it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    worker = Worker(kind, parser.parse_args().threads)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # of anyone's library; whoever asked decides
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
