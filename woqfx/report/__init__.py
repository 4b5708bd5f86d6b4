"""Reports: what a checkpoint tells of how it was made, as one HTML page or as JSON."""

from __future__ import annotations

from woqfx.report.facts import Report, read_report
from woqfx.report.page import write_page

__all__ = ["Report", "read_report", "write_page"]
