"""Checkpoints that ITREX writes of a tiny llama, and what its kernels decode them to: `write_itrex.py OUT`.

Each folder is loaded again, and its layers multiply the identity in float32.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from intel_extension_for_transformers.transformers import (  # type: ignore[import-not-found]
    AutoModelForCausalLM,
    AwqConfig,
    GPTQConfig,
    RtnConfig,
    TeqConfig,
)
from torch.utils.data import DataLoader
from written import batches, record, tiny_llama, tiny_tokenizer  # type: ignore[import-not-found]

_FOUR = {"bits": 4, "group_size": 32, "weight_dtype": "int4_clip"}
CASES: dict[str, Callable[[], Any]] = {
    "rtn-int4_clip": lambda: RtnConfig(**_FOUR, sym=True),
    "rtn-int4_clip-asymmetric": lambda: RtnConfig(**_FOUR, sym=False),
    "rtn-int8": lambda: RtnConfig(bits=8, group_size=32, weight_dtype="int8", sym=True),
    "awq-int4_clip": lambda: AwqConfig(**_FOUR, zero_point=True, **_data(), calib_func=_calibrate),
    "teq-int4_clip": lambda: TeqConfig(**_FOUR, sym=True, **_data()),
    "gptq-int4_clip": lambda: GPTQConfig(**_FOUR, sym=True, **_data()),
    "gptq-int4_clip-desc_act": lambda: GPTQConfig(**_FOUR, sym=False, desc_act=True, **_data()),
}


def _data() -> dict[str, Any]:
    return {"tokenizer": tiny_tokenizer(), "calib_dataloader": DataLoader(batches())}


def _calibrate(model: Any) -> None:
    with torch.no_grad():
        for row in batches():
            model(row[None])


def main(out: str) -> None:
    """Write all cases."""
    who = f"ITREX {version('intel-extension-for-transformers')}"
    dense = Path(out) / "dense"
    tiny_llama(torch.float32).save_pretrained(dense)
    tiny_tokenizer().save_pretrained(dense)
    for name, config in CASES.items():
        folder = Path(out) / name
        model = AutoModelForCausalLM.from_pretrained(dense, quantization_config=config(), use_neural_speed=False)
        model.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder, use_neural_speed=False)
        layers = {name: layer for name, layer in loaded.named_modules() if name.endswith("proj")}
        with torch.no_grad():
            record(folder, who, {f"{name}.weight": one(torch.eye(64)).T for name, one in layers.items()})
    shutil.rmtree(dense)


if __name__ == "__main__":
    main(*sys.argv[1:])
