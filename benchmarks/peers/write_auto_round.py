"""Checkpoints that auto-round writes of a tiny llama, and what they decode to: `write_auto_round.py OUT`.

Rounded to nearest: what is looked at is packing. Of the layouts of GPTQ and AWQ, its own code decodes; products of
codes and scales are fp16 there.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from auto_round import AutoRound  # type: ignore[import-not-found]
from auto_round.export.export_to_awq.utils import dequantize_gemm  # type: ignore[import-not-found]
from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp  # type: ignore[import-not-found]
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from written import record, tiny_llama, tiny_tokenizer  # type: ignore[import-not-found]

_MIXED = {"model.layers.0.mlp.down_proj": {"bits": 8, "sym": True}, "model.layers.0.self_attn.v_proj": {"bits": 16}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "auto_round-4": ("auto_round", {"bits": 4, "sym": True}),
    "auto_round-4-asymmetric": ("auto_round", {"bits": 4, "sym": False}),
    "auto_round-2-asymmetric": ("auto_round", {"bits": 2, "sym": False}),
    "auto_round-3": ("auto_round", {"bits": 3, "sym": True}),
    "auto_round-3-asymmetric": ("auto_round", {"bits": 3, "sym": False}),
    "auto_round-5-asymmetric": ("auto_round", {"bits": 5, "sym": False}),
    "auto_round-8": ("auto_round", {"bits": 8, "sym": True}),
    "auto_round-mixed": ("auto_round", {"bits": 4, "sym": True, "layer_config": _MIXED}),
    "auto_gptq-4": ("auto_gptq", {"bits": 4, "sym": True}),
    "auto_gptq-4-asymmetric": ("auto_gptq", {"bits": 4, "sym": False}),
    "auto_awq-4-asymmetric": ("auto_awq", {"bits": 4, "sym": False}),
}
_SHAPES = {"k_proj": (32, 64), "v_proj": (32, 64)}


def main(out: str) -> None:
    """Write all cases."""
    who = f"auto-round {version('auto-round')}"
    dense = Path(out) / "dense"
    tiny_llama(torch.float16).save_pretrained(dense)
    tiny_tokenizer().save_pretrained(dense)
    for name, (form, settings) in CASES.items():
        made, folder = Path(out) / "made", Path(out) / name
        model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float16)
        rounder = AutoRound(
            model, tiny_tokenizer(), group_size=32, iters=0, disable_opt_rtn=True, device_map="cpu", **settings
        )
        rounder.quantize_and_save(str(made), format=form)
        shutil.copytree(next(made.rglob("config.json")).parent, folder, dirs_exist_ok=True)
        shutil.rmtree(made)
        record(folder, who, dict(decoded(folder)))
    shutil.rmtree(dense)


def decoded(folder: Path) -> Any:
    """Each linear weight [N, K] of a folder, by auto-round's own code."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    packing = config["quant_method"] if config["quant_method"] in ("gptq", "awq") else config["packing_format"]
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "qweight":
            parts = {key: tensors[f"{module}.{key}"] for key in ("qweight", "qzeros", "scales")}
            n, k = _SHAPES.get(module.rpartition(".")[2], (64, 64))
            yield f"{module}.weight", _awq(parts, k) if "awq" in packing else _gptq(parts, n, k, packing)
        elif part == "weight" and "proj" in name:
            yield name, tensor


def _awq(parts: dict[str, Tensor], k: int) -> Tensor:
    group_size = k // len(parts["scales"])
    weight: Tensor = dequantize_gemm(parts["qweight"], parts["qzeros"], parts["scales"], 4, group_size)
    return weight.T


def _gptq(parts: dict[str, Tensor], n: int, k: int, packing: str) -> Tensor:
    less_one = packing in ("gptq", "auto_round:auto_gptq", "auto_round:gptq")
    kind = qlinear_torch_zp if less_one else qlinear_torch
    layer = kind.QuantLinear(len(parts["qweight"]) * 32 // k, k // len(parts["scales"]), k, n, bias=False)
    layer.load_state_dict(parts)
    weight: Tensor = layer(torch.eye(k))
    return weight.T.half()  # no more than it was


if __name__ == "__main__":
    main(*sys.argv[1:])
