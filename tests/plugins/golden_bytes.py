"""Digests of what the built-in dtypes write for one fixed weight. Run as a program, it writes the golden file anew.

The weight comes from integer arithmetic alone, so that no library's random numbers are in it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

import woqfx
from woqfx.nearest import quantize_nearest
from woqfx.plugins import registry

GOLDEN = Path(__file__).parents[1] / "golden" / "quantized.json"
DTYPES = (
    *("int8", "int4_clip", "int4_fullrange", "nf4", "fp4_e2m1"),
    *("int7", "int6", "int5", "int3", "int2", "fp4_bnb", "fp4_e2m1_itrex", "iq4_nl"),
)
GROUP_SIZES = (-1, 1, 16, 32, 100)
N, K = 6, 250


def weight() -> torch.Tensor:
    """[6, 250]: multiples of 2^-14 up to 1/4, scattered by Knuth's multiplicative hash; the last row is small."""
    scattered = [((i * 2654435761) % 2**32 >> 19) - 2**12 for i in range(N * K)]
    rows = torch.tensor(scattered, dtype=torch.float32).view(N, K) / 2**14
    rows[-1] /= 16
    return rows


def schemes() -> dict[str, woqfx.Scheme]:
    """Every dtype and group size, both schemes, all scale types, and double quantization."""
    made: dict[str, woqfx.Scheme] = {}
    for name in DTYPES:
        for group_size in GROUP_SIZES:
            for symmetric in (True, False) if registry().dtype(name).has_asymmetric else (True,):
                for scale_dtype in ("fp32", "fp16", "bf16"):
                    label = f"{name} g{group_size} {'sym' if symmetric else 'asym'} {scale_dtype}"
                    made[label] = woqfx.Scheme(name, group_size, symmetric, scale_dtype)
    # Sums of nf4's scales are exact for this weight, so that their mean is the same in any order of summation.
    for group_size in (16, 32):
        made[f"nf4 g{group_size} double"] = woqfx.Scheme("nf4", group_size, scale_dtype="fp32", double_quant=True)
    return made


def digests(scheme: woqfx.Scheme) -> dict[str, str]:
    """SHA-256 of each stored tensor's bytes, shortened to 16 hexadecimal digits."""
    q = quantize_nearest(weight(), registry().dtype(scheme.dtype), scheme, name="golden")
    raw = {suffix: part.contiguous().reshape(-1).view(torch.uint8) for suffix, part in q.tensors().items()}
    return {suffix: hashlib.sha256(part.numpy().tobytes()).hexdigest()[:16] for suffix, part in raw.items()}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({label: digests(s) for label, s in schemes().items()}, indent=1) + "\n")
