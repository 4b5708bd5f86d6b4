"""Calibration data by name: two sets that need no network, and those that papers use, from the Hugging Face Hub."""

from __future__ import annotations

import woqfx


@woqfx.hookimpl
def woqfx_calibration() -> list[woqfx.CalibrationSet]:
    """Give the sets; imported when asked for, since they need torch."""
    from woqfx_calibration.hub_sets import HUB_SETS
    from woqfx_calibration.own_text import OwnText
    from woqfx_calibration.python_docs import PythonDocs

    return [PythonDocs(), OwnText(), *HUB_SETS]
