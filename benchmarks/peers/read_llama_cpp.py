"""A GGUF file as llama.cpp loads it, for `benchmarks.formats`: `read_llama_cpp.py MODEL PROMPTS OUT`.

Keys and values are in fp16, its default, unless the file holds floats alone: then they are floats, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np


def main(model: str, prompts: str, out: str) -> None:
    """Greedy tokens and the logits of the first of them, for each prompt of token ids."""
    asked = json.loads(Path(prompts).read_text())
    loaded = llama_cpp.Llama(model, n_ctx=256, verbose=False, logits_all=True)
    if loaded.metadata["general.file_type"] == str(llama_cpp.LLAMA_FTYPE_ALL_F32):
        floats = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
        loaded = llama_cpp.Llama(model, n_ctx=256, verbose=False, logits_all=True, **floats)
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
    who = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
    np.savez(out, tokens=np.array(tokens), logits=np.stack(logits), who=np.array(who))


if __name__ == "__main__":
    main(*sys.argv[1:])
