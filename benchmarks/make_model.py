"""Make a llama of 1.1 billion random weights in bfloat16 (2.2 GB), a tensor at a time.

    python -m benchmarks.make_model [CACHE]

Its sizes are those of TinyLlama-1.1B (arXiv 2401.02385). Weights are normal with a deviation of 0.02, as a model
starts its training; the same on every machine. There is no tokenizer: nothing here generates.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.cache import default_cache
from woqfx.disk.tensorfile import layout, raw_bytes

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Llama:
    """A llama's sizes, under the names of its `config.json`."""

    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 22
    num_attention_heads: int = 32
    num_key_value_heads: int = 4
    vocab_size: int = 32000
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5

    def config(self) -> dict[str, object]:
        """The content of `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "tie_word_embeddings": False,
            **asdict(self),
        }

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Every tensor's name and shape, in the order of the file."""
        hidden, inner = self.hidden_size, self.intermediate_size
        kv = hidden // self.num_attention_heads * self.num_key_value_heads
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        for i in range(self.num_hidden_layers):
            layer = f"model.layers.{i}"
            yield f"{layer}.input_layernorm.weight", (hidden,)
            yield f"{layer}.self_attn.q_proj.weight", (hidden, hidden)
            yield f"{layer}.self_attn.k_proj.weight", (kv, hidden)
            yield f"{layer}.self_attn.v_proj.weight", (kv, hidden)
            yield f"{layer}.self_attn.o_proj.weight", (hidden, hidden)
            yield f"{layer}.post_attention_layernorm.weight", (hidden,)
            yield f"{layer}.mlp.gate_proj.weight", (inner, hidden)
            yield f"{layer}.mlp.up_proj.weight", (inner, hidden)
            yield f"{layer}.mlp.down_proj.weight", (hidden, inner)
        yield "model.norm.weight", (hidden,)
        yield "lm_head.weight", (self.vocab_size, hidden)


class Sizes(Protocol):
    """What says all of a model but its weights."""

    def config(self) -> Mapping[str, object]:
        """The content of `config.json`."""

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Every tensor's name and shape, in the order of the file."""


def make_model(folder: Path, model: Sizes | None = None) -> Path:
    """Write `config.json` and `model.safetensors` into `folder`, unless both are there; returns `folder`."""
    model = model or Llama()
    config, weights = folder / "config.json", folder / "model.safetensors"
    if config.exists() and weights.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    shapes = dict(model.shapes())
    plan = layout({name: (torch.bfloat16, shape) for name, shape in shapes.items()}, {"format": "pt"})
    unfinished = weights.with_suffix(".part")
    with unfinished.open("wb") as file:
        file.write(plan.header)
        for name, shape in shapes.items():
            file.write(raw_bytes(_random(name, shape)))
    config.write_text(json.dumps(model.config(), indent=1) + "\n")
    unfinished.rename(weights)
    return folder


def _random(name: str, shape: Shape) -> torch.Tensor:
    if len(shape) == 1:  # a norm
        return torch.ones(shape, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)


def main() -> None:
    """Make the model in the cache folder that the command line names."""
    parser = argparse.ArgumentParser(description="Make a random llama of 1.1B weights in bf16 (2.2 GB).")
    parser.add_argument("cache", nargs="?", type=Path, default=default_cache(), help="where (default: %(default)s)")
    print(make_model(parser.parse_args().cache / "llama-1.1b"))


if __name__ == "__main__":
    main()
