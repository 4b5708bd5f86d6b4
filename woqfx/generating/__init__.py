"""Text from a loaded model, on any backend: the shared core of LangChain, the server and the command line."""

from __future__ import annotations

from woqfx.generating.generator import TextGenerator
from woqfx.generating.grammar import Constraint
from woqfx.generating.request import Answer, Finish, Piece, Prompt, Request, TokenScore
from woqfx.generating.settings import Settings
from woqfx.generating.stream import Stream

__all__ = [
    "Answer",
    "Constraint",
    "Finish",
    "Piece",
    "Prompt",
    "Request",
    "Settings",
    "Stream",
    "TextGenerator",
    "TokenScore",
]
