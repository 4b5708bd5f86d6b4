"""Configuration objects that people already have, read as arguments of `woqfx.quantize`.

Nothing is imported from the libraries that they come from: they are known by their parameters.
"""

from __future__ import annotations

from woqfx.vocabularies.merging import add_config
from woqfx.vocabularies.reading import arguments_of

__all__ = ["add_config", "arguments_of"]
