"""What a plugin may tell of a model that woqfx cannot see for itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Hints for an odd model. What is left out is found as for any other model.

    `stacks` are the dotted names of the lists that hold the repeated blocks, in the order in which the model calls
    them.
    """

    stacks: tuple[str, ...] = ()
