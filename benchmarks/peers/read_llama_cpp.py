"""A GGUF file as llama.cpp loads it, for `benchmarks.formats`: `read_llama_cpp.py MODEL PROMPTS OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama  # type: ignore[import-not-found]


def main(model: str, prompts: str, out: str) -> None:
    """Greedy tokens and the logits of the first of them, for each prompt of token ids."""
    asked = json.loads(Path(prompts).read_text())
    loaded = Llama(model, n_ctx=256, verbose=False, logits_all=True)
    tokens, logits = [], []
    for ids in asked["prompts"]:
        loaded.reset()
        loaded.eval(ids)
        scores = np.array(loaded.scores[len(ids) - 1])
        logits.append(scores)
        made: list[int] = []
        for _ in range(asked["tokens"]):
            made.append(int(scores.argmax()))
            loaded.eval(made[-1:])
            scores = np.array(loaded.scores[loaded.n_tokens - 1])
        tokens.append(made)
    np.savez(out, tokens=np.array(tokens), logits=np.stack(logits))


if __name__ == "__main__":
    main(*sys.argv[1:])
