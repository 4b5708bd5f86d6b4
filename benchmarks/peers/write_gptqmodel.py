"""Checkpoints that GPTQModel writes of a tiny llama, and what its layers decode them to: `write_gptqmodel.py OUT`.

Its AWQ is left out: it wants layers of 64 rows and more.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # as many as it asks of itself, whatever the machine has
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # else it compiles each layer for minutes

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # type: ignore[import-not-found]
from torch import Tensor
from written import batches, record, tiny_llama, tiny_tokenizer  # type: ignore[import-not-found]

_MIXED = {r"+:.*down_proj": {"bits": 8, "group_size": 16}, r"-:.*v_proj": {}}
CASES: dict[str, dict[str, Any]] = {
    "gptq-4": {},
    "gptq-4-asymmetric": {"sym": False},
    "gptq_v2-4-asymmetric": {"sym": False, "format": "gptq_v2"},
    "gptq-4-desc_act": {"desc_act": True},
    "gptq-2": {"bits": 2},
    "gptq-3": {"bits": 3},
    "gptq-8": {"bits": 8},
    "gptq-dynamic": {"dynamic": _MIXED},
}


def main(out: str, *only: str) -> None:
    """Write all cases, or those that are named."""
    who = f"GPTQModel {version('gptqmodel')}"
    dense = Path(out) / "dense"
    tiny_llama(torch.float16).save_pretrained(dense)
    tiny_tokenizer().save_pretrained(dense)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in batches()]
    for name in only or CASES:
        made, folder = Path(out) / "made", Path(out) / name
        settings = {"bits": 4, "group_size": 32, "desc_act": False, "sym": True, **CASES[name]}
        model = GPTQModel.load(str(dense), QuantizeConfig(**settings), device="cpu")
        model.quantize(rows, batch_size=1)
        model.save(str(made))
        loaded = GPTQModel.load(str(made), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16)
        shutil.copytree(made, folder, dirs_exist_ok=True)
        record(folder, who, dict(decoded(loaded.model)))
        shutil.rmtree(made)
    shutil.rmtree(dense)


def decoded(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Each linear weight [N, K], by GPTQModel's own code."""
    for name, layer in model.named_modules():
        if not name.endswith("proj"):
            continue
        weight = layer.weight if isinstance(layer, torch.nn.Linear) else layer.dequantize_weight().T
        yield f"{name}.weight", weight


if __name__ == "__main__":
    main(*sys.argv[1:])
