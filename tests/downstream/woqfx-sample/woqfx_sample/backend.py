"""A backend that computes with NumPy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import woqfx


class NumpyWeight(woqfx.PackedWeight):
    """A weight in its plain codes; a layer is dequantized for each call, and forgotten."""

    def __init__(self, q: woqfx.QTensor, float_dtype: torch.dtype) -> None:
        super().__init__(q, float_dtype, kernel="numpy rows")
        for suffix, part in q.tensors().items():
            self.register_buffer(suffix, part)

    def qtensor(self) -> woqfx.QTensor:
        """See `woqfx.PackedWeight.qtensor`."""
        return woqfx.QTensor.of_parts(self.grid, self.scheme, self.shape, dict(self.named_buffers()))

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `woqfx.PackedWeight.linear`. One row at a time: a row of a matrix product can depend on its batch."""
        weight = self.qtensor().dequantize().numpy()
        tokens = x.detach().float().reshape(-1, weight.shape[1]).numpy()
        result = np.empty((len(tokens), len(weight)), np.float32)
        for i, token in enumerate(tokens):
            result[i] = (weight * token).sum(axis=1)
        y = torch.from_numpy(result)
        if bias is not None:
            y += bias.detach().float()
        return y.to(x.dtype).view(*x.shape[:-1], len(weight))

    def expert(self, index: int) -> NumpyWeight:
        """See `woqfx.PackedWeight.expert`."""
        return NumpyWeight(self.qtensor()[index], self.dtype)

    def rows(self, index: Tensor) -> Tensor:
        """See `woqfx.PackedWeight.rows`."""
        return self.qtensor().rows(index.flatten()).dequantize().to(self.dtype).view(*index.shape, -1)


class Numpy(woqfx.Backend):
    """NumPy, for the compute dtype fp32."""

    name = "sample_numpy"

    def supports(
        self, scheme: woqfx.Scheme, dtype: woqfx.DType, shape: tuple[int, ...], cpu: woqfx.CPU
    ) -> woqfx.Support:
        """See `woqfx.Backend.supports`."""
        if scheme.compute_dtype != "fp32":
            return woqfx.Support(
                ok=False,
                reason=f"NumPy has no arithmetic for compute dtype {scheme.compute_dtype}",
                remedy="compute_dtype fp32, or backend torch_cpu",
            )
        return woqfx.Support(ok=True, kernel="numpy rows", reason="dequantizes a layer, then multiplies row by row")

    def pack(self, q: woqfx.QTensor, float_dtype: torch.dtype) -> woqfx.PackedWeight:
        """See `woqfx.Backend.pack`."""
        return NumpyWeight(q, float_dtype)
