"""The PyTorch backend passes the suite that a stranger's backend passes."""

from __future__ import annotations

from woqfx.testing import BackendSuite
from woqfx_torch_cpu.backend import TorchCPU


class TestTorchCPU(BackendSuite):
    backend = TorchCPU()
    tolerance = 0.0
