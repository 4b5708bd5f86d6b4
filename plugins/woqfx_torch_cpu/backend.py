"""The backend: it takes every scheme that its compute dtype's reference takes."""

from __future__ import annotations

import torch

from woqfx import CPU, Backend, DType, PackedWeight, QTensor, Scheme, Support
from woqfx_torch_cpu.weight import TorchWeight


class TorchCPU(Backend):
    """PyTorch's own operations, on any machine that PyTorch runs on."""

    name = "torch_cpu"

    def supports(self, scheme: Scheme, dtype: DType, shape: tuple[int, ...], cpu: CPU) -> Support:
        """See `woqfx.Backend.supports`: everything is."""
        return Support(
            ok=True,
            kernel="reference",
            reason=f"dequantizes one layer at a time, then computes in {scheme.compute_dtype} with PyTorch",
        )

    def pack(self, q: QTensor, float_dtype: torch.dtype) -> PackedWeight:
        """See `woqfx.Backend.pack`: the codes stay as they are on disk."""
        return TorchWeight(q, float_dtype, "reference")
