"""LLM.int8() and NVFP4 written from their descriptions in plain PyTorch: tensors, and the weights that they mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])

INT8_CONFIG = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}

NVFP4_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        }
    },
}


def int8_encode(name: str, n: int, k: int) -> tuple[dict[str, Any], Any]:
    """Random int8 rows and their largest magnitudes: w = q SCB / 127."""
    codes = torch.randint(-127, 128, (n, k), generator=_generator(name), dtype=torch.int8)
    rows = torch.rand(n, generator=_generator(name)) + 0.5
    parts = {"weight": codes, "SCB": rows, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, codes * (rows.unsqueeze(1) / 127)


def nvfp4_encode(name: str, n: int, k: int) -> tuple[dict[str, Any], Any]:
    """Random bit patterns, float8 scales of 16 weights, and one divisor: w = e2m1 (scale / divisor)."""
    packed = torch.randint(0, 256, (n, k // 2), generator=_generator(name), dtype=torch.uint8)
    scales = (torch.rand(n, k // 16, generator=_generator(name)) * 400 + 40).to(torch.float8_e4m3fn)
    scales[0, 0] = 448.0
    divisor = torch.tensor([20_000.0])
    parts = {"weight_packed": packed, "weight_scale": scales, "weight_global_scale": divisor}
    return parts, _values(packed) * (scales.float() / divisor).repeat_interleave(16, dim=1)


def _values(packed: Tensor) -> Tensor:
    """E2M1 numbers, the even one in the low nibble."""
    return E2M1[torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1).long()]


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(name.encode()))
