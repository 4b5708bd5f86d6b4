"""The native kernels: C++ for the CPU's own instruction sets, which backends stand on, and which quantize."""

from __future__ import annotations

from importlib.util import find_spec

import woqfx


@woqfx.hookimpl
def woqfx_accelerators() -> list[woqfx.Accelerator]:
    """Give the native quantizing, unless woqfx was installed without a compiler; imported when asked for."""
    if find_spec("woqfx_native._core") is None:
        return []
    from woqfx_native.encode import NativeQuantizing

    return [NativeQuantizing()]
