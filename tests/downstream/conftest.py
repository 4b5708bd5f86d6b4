"""The sample's own tests run in the environment that it is installed in, not here."""

from __future__ import annotations

collect_ignore = ["woqfx-sample"]
