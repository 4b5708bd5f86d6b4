"""The 4-bit float E2M1 with block scales, as compressed-tensors stores it: NVFP4 and MXFP4.

`weight_packed` uint8 [N, K / 2] holds the bit patterns, the even weight in the low nibble: woqfx's own codes of
`fp4_e2m1`. NVFP4: groups of 16, w = e2m1 * (weight_scale / weight_global_scale), the first in float8 (e4m3), the second
float32, one for the weight. MXFP4 (OCP Microscaling v1.0): groups of 32, w = e2m1 * 2^(weight_scale - 127).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from woqfx import QTensor, Scheme, registry
from woqfx.errors import CheckpointError

DTYPE = "fp4_e2m1"
NVFP4 = Scheme(DTYPE, 16, scale_dtype="fp32")
#: bfloat16 holds every power of two from 2^-127 to 2^127.
MXFP4 = Scheme(DTYPE, 32, scale_dtype="bf16")

_F8 = torch.float8_e4m3fn
_F8_MAX = float(torch.finfo(_F8).max)


def decode(scheme: Scheme, parts: Mapping[str, Tensor], where: str) -> QTensor:
    """The weight of scheme `NVFP4` or `MXFP4` from its tensors by name. Raises `CheckpointError`."""
    packed, stored = parts["weight_packed"], parts["weight_scale"]
    if scheme == MXFP4:
        if bool((stored == 255).any()):
            raise CheckpointError(f"{where}.weight_scale holds the exponent 255, which is no number")
        scales = torch.ldexp(torch.ones(stored.shape), stored.to(torch.int32) - 127).to(torch.bfloat16)
    else:
        divisor = parts["weight_global_scale"].reshape(())
        if not bool(torch.isfinite(divisor)) or float(divisor) <= 0:
            raise CheckpointError(f"{where}.weight_global_scale is {float(divisor)}, not a positive number")
        scales = stored.to(torch.float32) / divisor
    n, half = packed.shape
    weight = QTensor(registry().dtype(DTYPE), scheme, (n, 2 * half), packed, scales)
    weight.check(where)
    return weight


def encode_mxfp4(weight: QTensor) -> dict[str, Tensor] | None:
    """The tensors of a weight in groups of 32, or None if a scale is not a power of two."""
    mantissa, exponent = torch.frexp(weight.params().scale)
    biased = exponent + 126
    if not bool(((mantissa == 0.5) & (biased >= 0) & (biased < 255)).all()):
        return None
    return {"weight_packed": weight.codes, "weight_scale": biased.to(torch.uint8)}


def encode_nvfp4(weight: QTensor) -> dict[str, Tensor] | None:
    """The tensors of a weight in groups of 16, or None if its scales are not float8 numbers over one divisor.

    The divisor is looked for where writers put it: the largest scale is 448, the largest float8 number, over it.
    """
    scales = weight.params().scale
    top = float(scales.max())
    if not top > 0:
        return None
    # float32 rounds both divisions, so that the divisor is one of a few neighbours.
    guess = torch.tensor(_F8_MAX / top, dtype=torch.float32)
    around = guess.view(torch.int32) + torch.arange(-2, 3, dtype=torch.int32)
    for divisor in around.view(torch.float32):
        stored = (scales * divisor).to(_F8)
        if torch.equal(stored.to(torch.float32) / divisor, scales):
            return {"weight_packed": weight.codes, "weight_scale": stored, "weight_global_scale": divisor.reshape(1)}
    return None
