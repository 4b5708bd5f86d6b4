"""Does llama.cpp compute the same with the GGUF files that woqfx writes, for every family that it writes?

A tiny model of each family, all of whose numbers are random, norms and biases too, becomes a GGUF file, in which the
embedding (of mixtures: experts; of Gemma, where it is the head as well: a projection) is Q8_0 and the rest float32.
llama.cpp's logits after eight tokens stand against those of transformers' module with the same weights.

    python -m benchmarks.gguf_families [--only llama gemma2] [--out benchmarks/results/gguf_families.md]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import woqfx
from benchmarks.cache import default_cache
from benchmarks.peers import llama_cpp_setup
from woqfx.cpu import this_cpu

READER = Path(__file__).parent / "peers" / "read_llama_cpp.py"
HEAD = 16
_FACTORS = {
    "long_factor": [1.5 + i / 8 for i in range(HEAD // 2)],
    "short_factor": [1 + i / 9 for i in range(HEAD // 2)],
}

#: The layers of a family that are quantized, and settings that a small model needs or that tell.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("*embed_tokens", {}),
    "mistral": ("*embed_tokens", {}),
    "mixtral": ("*.1.*experts.*", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("*embed_tokens", {}),
    "qwen3": ("*embed_tokens", {}),
    "qwen3_moe": (
        "*.1.*experts.*",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True},
    ),
    "phi3": ("*embed_tokens", {}),
    "phi3 (LongRoPE)": (
        "*embed_tokens",
        {
            "max_position_embeddings": 1024,
            "original_max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **_FACTORS},
        },
    ),
    "llama (Llama 3's frequencies)": (
        "*embed_tokens",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "gemma2": ("*.1.*down_proj", {"tie_word_embeddings": True, "query_pre_attn_scalar": HEAD, "sliding_window": 4}),
    "gemma3_text": (
        "*.6.*down_proj",
        {"tie_word_embeddings": True, "query_pre_attn_scalar": HEAD, "sliding_window": 4, "num_hidden_layers": 7},
    ),
    "smollm3": ("*embed_tokens", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}),
    "granite": (
        "*embed_tokens",
        {
            "attention_multiplier": 0.3,
            "embedding_multiplier": 2.5,
            "residual_multiplier": 0.4,
            "logits_scaling": 3.0,
        },
    ),
    "olmo2": ("*embed_tokens", {}),
    "gpt2": ("*wte", {}),
    "gpt_neox": ("*embed_in", {}),
}
_COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": HEAD}


def tiny(family: str) -> Any:
    """A model of which every number is random."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = family.partition(" ")[0]
    shared = _COMMON if kind.startswith("gpt") else {**_COMMON, **_GROUPED}
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(AutoConfig.for_model(kind, **{**shared, **FAMILIES[family][1]}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.1)
    return model.float().eval()


def measure(family: str, python: Path, folder: Path) -> dict[str, Any]:
    """|theirs - ours| / |ours| of the last token's logits, of two texts, and whether the likeliest tokens agree."""
    tiny(family).save_pretrained(folder / "model")
    rules = ["*=keep", f"{FAMILIES[family][0]}=int8"]
    woqfx.quantize(folder / "model", out=folder / "ours", rules=rules, progress="none")
    woqfx.convert(folder / "ours", folder / "gguf", to="gguf", progress="none")
    ids = torch.randint(3, 128, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = woqfx.load(folder / "ours")(input_ids=ids).logits[:, -1].numpy()
    prompts, out = folder / "prompts.json", folder / "out.npz"
    prompts.write_text(json.dumps({"prompts": ids.tolist(), "tokens": 1}))
    subprocess.run([python, READER, folder / "gguf" / "model.gguf", prompts, out], check=True)
    theirs = np.load(out)["logits"]
    return {
        "family": family,
        "difference": float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours)),
        "likeliest": bool((theirs.argmax(-1) == ours.argmax(-1)).all()),
    }


def main() -> None:
    """Measure the families that are asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where llama.cpp is (default: %(default)s)")
    parser.add_argument("--only", nargs="*", default=list(FAMILIES))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    python = llama_cpp_setup.environment(asked.cache)
    rows = []
    for family in asked.only:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(family, python, Path(folder)))
        print(rows[-1], flush=True)
    if asked.out:
        asked.out.write_text(page(rows))


def page(rows: list[dict[str, Any]]) -> str:
    """The results as a page."""
    lines = [
        "# GGUF by families",
        "",
        "Tiny random models, written by woqfx, read by llama.cpp: `python -m benchmarks.gguf_families`.",
        "The embedding is Q8_0 and looked up (in mixtures experts, in Gemma a projection, with inputs that llama.cpp",
        "rounds to 8 bits), the rest float32. llama.cpp keeps keys and values in fp16.",
        f"Processor: {this_cpu().model}.",
        "",
        "| family | logits apart | the same likeliest token |",
        "|---|---|---|",
    ]
    made = [f"| {row['family']} | {row['difference']:.1e} | {'yes' if row['likeliest'] else 'no'} |" for row in rows]
    return "\n".join([*lines, *made]) + "\n"


if __name__ == "__main__":
    main()
