"""RTN passes the suite that a stranger's algorithm passes."""

from __future__ import annotations

from woqfx.testing import AlgorithmSuite
from woqfx_rtn.rtn import RTN, RTNOptions


class TestRTN(AlgorithmSuite):
    algorithm = RTN
    variants = (RTNOptions(), RTNOptions(mse_range=True))
