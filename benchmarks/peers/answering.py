"""What every reader of `benchmarks.formats` that has transformers' interface does with the model that it loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch


def answer(model: Any, prompts: str, out: str, who: str) -> None:
    """Write greedy tokens, and the logits before the first of them, for each prompt of token ids, to `out`."""
    asked = json.loads(Path(prompts).read_text())
    tokens, logits = [], []
    for ids in asked["prompts"]:
        prompt = torch.tensor([ids])
        with torch.no_grad():
            logits.append(model(prompt).logits[0, -1].float().numpy())
            made = model.generate(prompt, max_new_tokens=asked["tokens"], do_sample=False, eos_token_id=None)
        tokens.append(made[0, len(ids) :].tolist())
    np.savez(out, tokens=np.array(tokens), logits=np.stack(logits), who=np.array(who))
