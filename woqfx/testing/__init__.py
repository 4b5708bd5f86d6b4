"""Conformance suites: what every dtype, compute dtype, algorithm and backend must keep to, as tests to inherit.

    from woqfx.testing import DTypeSuite

    class TestMyGrid(DTypeSuite):
        dtype = MyGrid()

Subclass the suite of your plugin's kind, name the thing under test, and run pytest: the tests come by
inheritance. woqfx's own plugins pass the same suites. They need pytest and hypothesis, which woqfx itself does not
(`pip install woqfx[test]`).
"""

from __future__ import annotations

import pytest

_SUITES = ("algorithm", "backend", "cases", "compute", "data_algorithm", "dtype")
pytest.register_assert_rewrite(*(f"{__name__}.{suite}" for suite in _SUITES))

from woqfx.testing.algorithm import AlgorithmSuite  # noqa: E402 - asserts explain themselves only if rewritten first
from woqfx.testing.backend import BackendSuite  # noqa: E402
from woqfx.testing.compute import ComputeDTypeSuite  # noqa: E402
from woqfx.testing.data_algorithm import DataAlgorithmSuite  # noqa: E402
from woqfx.testing.dtype import DTypeSuite  # noqa: E402

__all__ = ["AlgorithmSuite", "BackendSuite", "ComputeDTypeSuite", "DTypeSuite", "DataAlgorithmSuite"]
