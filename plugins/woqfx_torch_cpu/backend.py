"""The backend: native kernels where they can run a weight, the compute dtype's reference where not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from woqfx import (
    CPU,
    Backend,
    DType,
    PackedWeight,
    QTensor,
    Roofline,
    Scheme,
    StoredModel,
    Support,
    option,
    registry,
    this_cpu,
)
from woqfx_native import support
from woqfx_torch_cpu.reference import ReferenceWeight


@dataclass(frozen=True)
class TorchCPUOptions:
    """What loading may be told."""

    pack_cache: str = option("", "A folder that keeps weights as the native kernels hold them, to load them faster.")


class TorchCPU(Backend):
    """PyTorch modules on any machine: native kernels for the CPU's own instructions, or PyTorch's operations."""

    name = "torch_cpu"
    Options = TorchCPUOptions

    def supports(self, scheme: Scheme, dtype: DType, shape: tuple[int, ...], cpu: CPU) -> Support:
        """See `woqfx.Backend.supports`: everything is; the answer says what runs it, and why not a native kernel."""
        native = support.support(scheme, dtype, shape, cpu)
        if native.ok:
            return native
        how = f"dequantizes one layer at a time, then computes in {scheme.compute_dtype} with PyTorch"
        return Support(ok=True, kernel="reference", reason=f"{how}: {native.reason}")

    def pack(self, q: QTensor, float_dtype: torch.dtype) -> PackedWeight:
        """See `woqfx.Backend.pack`."""
        native = support.support(q.scheme, q.dtype, tuple(q.shape), this_cpu())
        if not native.ok:
            return ReferenceWeight(q, float_dtype, "reference")
        from woqfx_torch_cpu.native import NativeWeight

        return NativeWeight(q, float_dtype, native.kernel)

    def packer(self, stored: StoredModel, options: TorchCPUOptions) -> Callable[[str], PackedWeight]:
        """See `woqfx.Backend.packer`: with a pack cache, native weights come from there."""
        plain = super().packer(stored, options)
        if not options.pack_cache or support.absent():
            return plain
        from woqfx_native.cache import PackCache
        from woqfx_torch_cpu.native import NativeWeight

        cache = PackCache(options.pack_cache, stored)

        def packed(name: str) -> PackedWeight:
            weight = stored.weights[name]
            grid = registry().dtype(weight.scheme.dtype)
            native = support.support(weight.scheme, grid, weight.shape, this_cpu())
            if not native.ok or not cache.can_hold(name):
                return plain(name)
            return NativeWeight.of_bytes(grid, weight, cache.packed(name), native.kernel)

        return packed

    def reads_weights(self, options: TorchCPUOptions) -> bool:
        """See `woqfx.Backend.reads_weights`: not where they may be in a pack cache."""
        return not options.pack_cache

    def roofline(self, threads: int) -> Roofline:
        """See `woqfx.Backend.roofline`: what loops of plain machine instructions reach."""
        if support.absent():
            return super().roofline(threads)
        from woqfx_native.roofline import measure

        return measure(threads)
