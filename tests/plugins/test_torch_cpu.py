"""The PyTorch backend passes the suite that a stranger's backend passes: with native kernels, and without."""

from __future__ import annotations

import pytest

from woqfx.testing import BackendSuite
from woqfx_native import support
from woqfx_torch_cpu.backend import TorchCPU


class TestNative(BackendSuite):
    """Sums in float32 in another order than the reference's."""

    backend = TorchCPU()
    tolerance = 1e-6


class TestReference(BackendSuite):
    """What runs where there was no compiler."""

    backend = TorchCPU()
    tolerance = 0.0

    @pytest.fixture(autouse=True)
    def _no_kernels(self, monkeypatch):
        monkeypatch.setattr(support, "absent", lambda: "it is a test")
