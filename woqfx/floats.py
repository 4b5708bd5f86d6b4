"""The floating-point types that a model's weights come in."""

from __future__ import annotations

from collections.abc import Mapping

import torch

#: By the names that configs and manifests use.
FLOAT_DTYPES: Mapping[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
