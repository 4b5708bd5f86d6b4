"""A backend that runs whole language models natively."""

from __future__ import annotations

from typing import TYPE_CHECKING

import woqfx

if TYPE_CHECKING:
    from torch import nn

#: The backend's name, also in `Architecture.descriptions`.
NAME = "llm_runtime"


@woqfx.hookimpl
def woqfx_backends() -> list[woqfx.Backend]:
    """Give the backend; imported when asked for, since it needs torch."""
    from woqfx_llm_runtime.backend import LLMRuntime

    return [LLMRuntime()]


@woqfx.hookimpl
def woqfx_architecture(model: nn.Module) -> woqfx.Architecture | None:
    """Describe the models of transformers that are known here."""
    from woqfx_llm_runtime.families import family_of

    family = family_of(model)
    return None if family is None else woqfx.Architecture(descriptions={NAME: family})
