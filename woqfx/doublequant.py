"""Double quantization: storing the scales of a weight in 8 bits (QLoRA, arXiv 2305.14314, section 3).

The mean of all scales is taken off; what remains is stored as 8-bit codes of the signed dynamic map
(Dettmers, arXiv 1511.04561), with one fp32 range per 256 consecutive scales. These are the numbers of
bitsandbytes: offset and ranges bit for bit, codes as its portable kernel gives them (its compiled kernel for CPUs
finds them by a coarse table, whose thresholds are up to 1.6e-5 off the midpoints).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from woqfx.scheme import DOUBLE_QUANT_BLOCK


@dataclass(frozen=True)
class ScaleCodes:
    """Scales in 8 bits: scale[i] = map[codes[i]] * ranges[i // 256] + offset, over the flattened scales."""

    codes: Tensor  # uint8, the shape of the scales
    ranges: Tensor  # float32 [ceil(count / 256)]
    offset: Tensor  # float32 []

    def expand(self) -> Tensor:
        """The scales, float32, in the shape of the codes."""
        values = dynamic_map()[self.codes.flatten().to(torch.int32)]
        values *= self.ranges.repeat_interleave(DOUBLE_QUANT_BLOCK)[: values.numel()]
        return (values + self.offset).view(self.codes.shape)


@cache
def dynamic_map() -> Tensor:
    """The 256 values of the signed dynamic 8-bit type, ascending, float32.

    Decade i of seven, from 1e-6 to 1, holds the midpoints of 2^i equal steps between 0.1 and 1, with
    both signs; 0 and 1 complete it.
    """
    values = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    for decade in range(7):
        edges = _steps(2**decade)
        middles = np.float32(10 ** (decade - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        values += [middles, -middles]
    return torch.from_numpy(np.sort(np.concatenate(values)))


def _steps(count: int) -> NDArray[np.float32]:
    """`torch.linspace(0.1, 1, count + 1)` as it is on processors with fused multiply-add: the same numbers on all.

    From each end to the middle, products and sums exact in float64 and rounded once.
    """
    start, end = np.float64(np.float32(0.1)), np.float64(1)
    step = np.float64(np.float32((np.float32(1) - np.float32(0.1)) / np.float32(count)))
    index = np.arange(count + 1)
    return np.where(index < (count + 1) // 2, start + step * index, end - step * (count - index)).astype(np.float32)


def compress(scales: Tensor) -> ScaleCodes:
    """Store float32 scales of any shape in 8 bits."""
    offset = _mean(scales.flatten())
    centred = (scales - offset).flatten()
    blocks = torch.nn.functional.pad(centred, (0, -centred.numel() % DOUBLE_QUANT_BLOCK))
    blocks = blocks.view(-1, DOUBLE_QUANT_BLOCK)
    ranges = blocks.abs().amax(dim=-1)
    scaled = blocks * (1.0 / ranges.clamp(min=1e-38)).unsqueeze(-1)
    values = dynamic_map()
    codes = torch.bucketize(scaled, (values[1:] + values[:-1]) / 2, out_int32=True).to(torch.uint8)
    return ScaleCodes(codes.flatten()[: centred.numel()].view(scales.shape), ranges, offset)


def _mean(flat: Tensor) -> Tensor:
    """`flat.mean()` as one thread computes it: a full reduction would depend on the number of threads."""
    return flat.expand(2, -1).mean(dim=1)[0]
