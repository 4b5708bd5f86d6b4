"""A checkpoint as transformers loads it, for `benchmarks.formats`: `read_transformers.py MODEL PROMPTS OUT`.

The library that unpacks the weights (compressed-tensors, bitsandbytes) is the real one; woqfx is not imported.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from answering import answer  # type: ignore[import-not-found]
from transformers import AutoModelForCausalLM


def main(model: str, prompts: str, out: str) -> None:
    """Load and answer."""
    config = json.loads((Path(model) / "config.json").read_text())
    unpacks = config["quantization_config"]["quant_method"]
    who = f"transformers {version('transformers')} with {unpacks} {version(unpacks)}"
    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    answer(loaded.eval(), prompts, out, who)


if __name__ == "__main__":
    main(*sys.argv[1:])
