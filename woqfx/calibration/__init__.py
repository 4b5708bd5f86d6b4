"""Calibration data: from texts, chats, tokens, files and named sets to batches of tokens.

    request = CalibrationRequest("python-docs", samples=32, seq_len=512)
    calibration = prepare_calibration(request, source)

Modules: `request` (what is asked), `contract` (what a named set is), `subject` (what a set may ask of the model),
`files`, `documents` and `hub` (where texts come from), `rows` (texts to tokens), `data` (the result), `prepare` (all).
"""

from __future__ import annotations

from woqfx.calibration.data import Calibration
from woqfx.calibration.prepare import check_calibration, prepare_calibration
from woqfx.calibration.request import CalibrationRequest

__all__ = ["Calibration", "CalibrationRequest", "check_calibration", "prepare_calibration"]
