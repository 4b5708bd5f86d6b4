"""How well a quantized model does on the prose: `python -m benchmarks.quality_measure FOLDER RESULT [--tokens N]`.

RESULT is a woqfx checkpoint, a folder of float weights that a peer wrote, or a GGUF file. The last line on standard
output is a JSON object: perplexity, that of the float model, and the KL divergence from it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

import woqfx
from woqfx.disk.checkpoint import is_checkpoint
from woqfx.evaluate import compare
from woqfx.original import load_original

CONTEXT = 512


def load(folder: Path, result: Path) -> nn.Module:
    """A result as a model in float32, or ready to run."""
    if result.is_dir() and is_checkpoint(result):
        return woqfx.load(result, backend="torch_cpu")
    made = load_original(result)
    if result.is_dir():
        return made
    # A GGUF file that was made for quantizing tells less of the model than its folder does.
    model = load_original(folder / "model")
    model.load_state_dict(made.state_dict(), strict=False)
    return model


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description="Measure a quantized model on the prose.")
    parser.add_argument("folder", type=Path, help="the folder of benchmarks.quality_model")
    parser.add_argument("result", type=Path)
    parser.add_argument("--tokens", type=int, default=32768)
    arguments = parser.parse_args()
    ids = load_file(arguments.folder / "tokens.safetensors")["prose"][: arguments.tokens]
    with torch.no_grad():
        model, original = load(arguments.folder, arguments.result), load_original(arguments.folder / "model")
        found = compare(model, original, ids, CONTEXT)
    facts = {"perplexity": found.model.value, "float": found.reference.value, "divergence": found.divergence}
    print(json.dumps({**facts, "agreement": found.agreement, "tokens": len(ids)}))


if __name__ == "__main__":
    main()
