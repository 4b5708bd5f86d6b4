"""The PyTorch backend for CPUs."""

from __future__ import annotations

import woqfx


@woqfx.hookimpl
def woqfx_backends() -> list[woqfx.Backend]:
    """Give the backend; imported when asked for, since it needs torch."""
    from woqfx_torch_cpu.backend import TorchCPU

    return [TorchCPU()]
