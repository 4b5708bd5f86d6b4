"""What the quality benchmark works on, made once: `python -m benchmarks.quality_model FOLDER`.

In FOLDER: `model`, SmolLM2-135M-Instruct with rescaled channels, in float32; `model.gguf`, the same for llama.cpp;
`tokens.safetensors`, `calibration` (32 x 512 tokens, those that woqfx takes from python-docs) for peers and `prose` to
measure on; `importance.npz`, the mean square of the inputs of each weight over the calibration tokens, for llama.cpp.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.make_model import Llama
from benchmarks.peers.make_gguf import gguf_name, make_gguf
from benchmarks.prose import prose
from benchmarks.rescale import rescale
from woqfx import CalibrationRequest
from woqfx.calibration import prepare_calibration
from woqfx.cli.models import load_tokenizer
from woqfx.original import load_original
from woqfx.source import open_source

SAMPLES, LENGTH = 32, 512


def make(folder: Path) -> None:
    """Make what is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    model, tokens, importance = folder / "model", folder / "tokens.safetensors", folder / "importance.npz"
    if not (model / "tokenizer.json").exists():
        _make_model(model)
    if not tokens.exists():
        save_file(_tokens(folder, model), tokens)
    if not importance.exists():
        np.savez(importance, **_importance(model, load_file(tokens)["calibration"]))
    make_gguf(model, folder / "model.gguf", _sizes(model))


def _make_model(target: Path) -> None:
    from examples.demo import smollm2

    rescaled: Any = load_original(smollm2())
    rescale(rescaled)
    rescaled.save_pretrained(target)
    load_tokenizer(smollm2()).save_pretrained(target)


def _tokens(folder: Path, model: Path) -> dict[str, torch.Tensor]:
    request = CalibrationRequest(samples=SAMPLES, seq_len=LENGTH)
    batches = prepare_calibration(request, open_source(str(model))).batches
    ids = load_tokenizer(str(model))(prose(folder), return_tensors="pt", verbose=False).input_ids[0]
    return {"calibration": torch.cat(batches), "prose": ids}


def _importance(folder: Path, rows: torch.Tensor) -> dict[str, np.ndarray]:
    """The mean square of each input of each linear of the blocks, by llama.cpp's name of its weight."""
    model: Any = load_original(folder)
    sums: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        def see(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            square = inputs[0].square().flatten(0, -2).sum(0)
            sums[name] = sums[name] + square if name in sums else square

        return see

    for name, module in model.model.layers.named_modules(prefix="model.layers"):
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(watch(gguf_name(f"{name}.weight")))
    with torch.no_grad():
        for part in rows.split(4):
            model(input_ids=part, use_cache=False)
    return {name: (total / rows.numel()).numpy() for name, total in sums.items()}


def _sizes(folder: Path) -> Llama:
    config = json.loads((folder / "config.json").read_text())
    return Llama(**{field.name: config[field.name] for field in dataclasses.fields(Llama)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make what the quality benchmark works on.")
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder)
