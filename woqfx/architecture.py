"""What a plugin may tell of a model that woqfx cannot see for itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Architecture:
    """Hints for an odd model. What is left out is found as for any other model.

    `stacks` are the dotted names of the lists that hold the repeated blocks, in the order in which the model calls
    them. `descriptions` are for backends that run whole models by themselves: by the backend's name, what the model
    computes, in that backend's own terms.
    """

    stacks: tuple[str, ...] = ()
    descriptions: Mapping[str, object] = field(default_factory=dict, hash=False)
