"""What the scripts that have other programs write a checkpoint share: the model, and the record of what it means.

Runs in the environments of those programs, of transformers 4.40 too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

RECORD = "decoded.json"
_KEPT = ("config.json", "quantize_config.json", "model.safetensors")


def tiny_llama(dtype: torch.dtype = torch.float32) -> Any:
    """A llama of one layer with random weights, 24,576 of them linear.

    Rows have means of their own, so that zero points differ and some groups lie on one side of zero.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(config)
    model.eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("proj.weight"):
                weight += torch.linspace(-0.06, 0.06, len(weight))[:, None]
    return model.to(dtype)


def tiny_tokenizer() -> Any:
    """A word for each id: programs that look at data want a tokenizer, if they use it or not."""
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(32)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=words, unk_token="w0", pad_token="w1", eos_token="w2")


def batches(count: int = 8, length: int = 32) -> Tensor:
    """Random token ids [count, length] for algorithms that look at data."""
    return torch.randint(0, 32, (count, length), generator=torch.Generator().manual_seed(1))


def record(folder: Path, made_by: str, weights: Mapping[str, Tensor]) -> None:
    """Write beside a checkpoint what its program dequantizes each weight [N, K] to: a digest, and the first values.

    What no reader of weights looks at is taken out: other files, and the name of the folder that the model came from.
    """
    facts = {name: _fact(weight.detach()) for name, weight in sorted(weights.items())}
    for path in folder.iterdir():
        if path.name not in _KEPT:
            path.unlink()
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / RECORD).write_text(json.dumps({"made_by": made_by, "weights": facts}, indent=1) + "\n")


def _fact(weight: Tensor) -> dict[str, Any]:
    kind = str(weight.dtype).removeprefix("torch.")
    return {"dtype": kind, "sha256": digest(weight), "first": weight.flatten()[:4].float().tolist()}


def digest(weight: Tensor) -> str:
    """SHA-256 of a weight's bytes, row by row, little-endian; -0 counts as 0, which a product with ones makes of it."""
    return hashlib.sha256((weight + 0).contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
