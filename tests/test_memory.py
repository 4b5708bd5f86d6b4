"""Quantizing a folder takes memory for its largest tensors, not for the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from woqfx.disk import tensorfile

HIDDEN, WIDE, LAYERS, VOCABULARY = 1024, 4096, 6, 1024

SCRIPT = """
import json, resource, sys
import transformers.models.llama.modeling_llama
import woqfx
from woqfx import api
from woqfx.planning import make_plan
from woqfx.request import Request
from woqfx.source import open_source

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def job(source, out):
    request = Request.read(dtype="int4_clip")
    opened = open_source(source)
    api.quantize_to(opened, make_plan(opened, request), out)

small, large, out = sys.argv[1:]
job(small, out + "-small")
baseline = peak()
job(large, out)
print(json.dumps(peak() - baseline))
"""


def _tensors(layers: int, wide: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for number in range(layers):
        layer = f"model.layers.{number}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (wide, HIDDEN) for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (HIDDEN, wide)}
        shapes |= {f"{layer}{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    return {**shapes, "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def _model(folder: Path, layers: int, wide: int) -> Path:
    """A llama in bf16, written a tensor at a time."""
    from transformers import LlamaConfig

    sizes = {"hidden_size": HIDDEN, "intermediate_size": wide, "num_hidden_layers": layers, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "dtype": "bfloat16"}
    config = LlamaConfig(architectures=["LlamaForCausalLM"], **sizes, **heads)
    config.save_pretrained(folder)
    shapes = _tensors(layers, wide)
    planned = tensorfile.layout({name: (torch.bfloat16, shape) for name, shape in shapes.items()}, {"format": "pt"})
    generator = torch.Generator().manual_seed(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(planned.header)
        for shape in shapes.values():
            file.write(tensorfile.raw_bytes(torch.randn(shape, generator=generator).to(torch.bfloat16)))
    return folder


@pytest.mark.slow
def test_peak_memory_is_bounded_by_the_largest_tensor(tmp_path):
    small, large = _model(tmp_path / "small", 1, 64), _model(tmp_path / "large", LAYERS, WIDE)
    size = (large / "model.safetensors").stat().st_size
    largest = WIDE * HIDDEN * 2
    assert size > 180e6
    arguments = [sys.executable, "-c", SCRIPT, small, large, tmp_path / "out"]
    grown = json.loads(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    # Two tensors are held (one is read ahead), the codes and scales of one, and float32 copies of a chunk of rows.
    assert grown < 4 * largest + (24 << 20)
    assert grown < size / 3
