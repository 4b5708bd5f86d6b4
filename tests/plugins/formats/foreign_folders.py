"""Tiny models in other programs' folders: random codes in a layout, and the weights that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

import woqfx
from woqfx.layers import packed_weights
from woqfx.original import load_original

Array = NDArray[Any]

#: The tensors of a layer, and the weight float32 [N, K] that they stand for; None keeps the layer.
Encode = Callable[[str, int, int], tuple[Mapping[str, Array | torch.Tensor], Array | torch.Tensor] | None]

_NOT_LINEAR = ("embed", "wte", "wpe", "norm", "ln_", "gate.weight", "router")


@dataclass(frozen=True)
class Codes:
    """Random codes [N, K] of a layer, with zeros and scales [N, G], and the group of each input."""

    codes: Array
    zeros: Array
    scales: Array
    groups: Array


def random_codes(
    n: int, k: int, *, bits: int = 4, group_size: int = 32, symmetric: bool = False, seed: int = 0
) -> Codes:
    """Codes over the whole range, zeros too (unless symmetric), scales as fp16 holds them."""
    rng = np.random.default_rng(seed)
    width = k if group_size == -1 else group_size
    count = -(-k // width)
    zeros = np.full((n, count), 1 << (bits - 1)) if symmetric else rng.integers(0, 1 << bits, (n, count))
    scales = rng.uniform(0.001, 0.02, (n, count)).astype(np.float16)
    return Codes(
        rng.integers(0, 1 << bits, (n, k)).astype(np.uint8), zeros.astype(np.uint8), scales, np.arange(k) // width
    )


def quantized_folder(
    folder: Path,
    quantization: Mapping[str, Any] | None,
    encode: Encode,
    *,
    family: str = "llama",
    head: bool = False,
    dtype: torch.dtype = torch.float16,
    **changes: Any,
) -> tuple[Path, Path]:
    """A folder of a tiny model whose linear layers are what `encode(name, n, k)` gives, and one with their weights.

    The output head only with `head`. The second folder is not quantized: it holds what the first one means.
    """
    dense = folder.with_name(f"{folder.name}-dense")
    model = tiny_model(family, dtype=dtype, **changes)
    model.save_pretrained(dense, max_shard_size="100GB")
    tensors = load_file(dense / "model.safetensors")
    stored = dict(tensors)
    for name, tensor in tensors.items():
        prefix, _, leaf = name.rpartition(".")
        if leaf != "weight" or tensor.ndim != 2 or any(part in name for part in _NOT_LINEAR):
            continue
        turned = family == "gpt2"  # Conv1D stores [K, N]
        if name.startswith("lm_head") and not head:
            continue
        made = encode(prefix, *(tensor.shape[::-1] if turned else tensor.shape))
        if made is None:
            continue
        parts, weight = made
        del stored[name]
        stored |= {f"{prefix}.{part}": _tensor(array) for part, array in parts.items()}
        tensors[name] = _tensor(weight.T if turned else weight)
    folder.mkdir()
    for path, held in ((folder, stored), (dense, tensors)):
        save_file(held, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((dense / "config.json").read_text())
    if quantization is not None:
        config["quantization_config"] = dict(quantization)
    (folder / "config.json").write_text(json.dumps(config))
    return folder, dense


def assert_means(folder: Path, dense: Path, *, packed: int | None = None) -> torch.nn.Module:
    """Check that woqfx loads a folder packed, and that each weight is what the other one holds, bit for bit."""
    model, expected = woqfx.load(folder), load_original(dense).state_dict()
    weights = packed_weights(model)
    assert weights and (packed is None or len(weights) == packed)
    for name, weight in weights.items():
        held = weight.qtensor().dequantize()
        meant = expected[name].float()
        transposed = type(model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"
        assert torch.equal(held, meant.T if transposed else meant), name
    for name, tensor in model.state_dict().items():
        if not any(name.startswith(weight) for weight in weights):
            assert torch.equal(tensor, expected[name]), name
    return model


def gptq_encode(
    bits: int = 4,
    group_size: int = 32,
    *,
    symmetric: bool = True,
    act_order: bool = False,
    minus_one: bool = True,
    by_words: bool = False,
) -> Encode:
    """What GPTQ makes of every layer."""
    import layouts

    def encode(name: str, n: int, k: int) -> tuple[Mapping[str, Array], Array]:
        made = random_codes(n, k, bits=bits, group_size=group_size, symmetric=symmetric, seed=len(name) + n)
        # Layers of one input have one order.
        groups = np.random.default_rng(k).permutation(made.groups) if act_order else made.groups
        how = {"g_idx": groups, "minus_one": minus_one, "by_words": by_words}
        parts = layouts.gptq(made.codes, made.zeros, made.scales, bits, **how)
        return parts, layouts.weight_of(made.codes, made.zeros, made.scales, groups)

    return encode


def awq_encode(group_size: int = 32) -> Encode:
    """What AutoAWQ's GEMM makes of every layer."""
    import layouts

    def encode(name: str, n: int, k: int) -> tuple[Mapping[str, Array], Array]:
        made = random_codes(n, k, group_size=group_size, seed=len(name) + n)
        parts = layouts.awq_gemm(made.codes, made.zeros, made.scales)
        return parts, layouts.weight_of(made.codes, made.zeros, made.scales, made.groups)

    return encode


def gptq_config(**changes: Any) -> dict[str, Any]:
    """A config as GPTQModel writes it."""
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "gptq",
        "lm_head": False,
        **changes,
    }


AWQ_CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def _tensor(array: Array | torch.Tensor) -> torch.Tensor:
    """Tensors have types that arrays lack."""
    return array.contiguous() if isinstance(array, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(array))
