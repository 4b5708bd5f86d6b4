"""An OpenAI-compatible server over one model: `woqfx serve`, or `create_app` for a server of your own.

It needs the extra `serve` (FastAPI and uvicorn).
"""

from __future__ import annotations

from woqfx.serve.app import create_app
from woqfx.serve.limits import Limits

__all__ = ["Limits", "create_app"]
