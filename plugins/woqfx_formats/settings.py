"""What a quantization config says, read with care: any value may be of any type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from woqfx import ModelFiles, Scheme
from woqfx.errors import CheckpointError, SchemeError

T = TypeVar("T")

#: How a scheme calls the types in which scales are stored.
SCALE_DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Settings:
    """The values of one quantization config; `CheckpointError` for those of a wrong type."""

    files: ModelFiles
    values: Mapping[str, Any]

    def integer(self, *keys: str) -> int | None:
        """The first of `keys` that is there and not null, a whole number."""
        return self._of(int, keys)

    def flag(self, *keys: str) -> bool | None:
        """The first of `keys` that is there and not null, true or false."""
        return self._of(bool, keys)

    def text(self, *keys: str) -> str | None:
        """The first of `keys` that is there and not null, a text."""
        return self._of(str, keys)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object; empty if there is none."""
        found: Mapping[str, Any] | None = self._of(dict, (key,))
        return found or {}

    def _of(self, kind: type[T], keys: tuple[str, ...]) -> T | None:
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if type(value) is not kind:  # JSON's true is an int to Python
                raise self.bad(key, f"not of type {kind.__name__}")
            found: T = value
            return found
        return None

    def bad(self, key: str, why: str) -> CheckpointError:
        """An error about one value."""
        return CheckpointError(
            f"{self.files.label}: its quantization config says {key} {str(self.values.get(key))[:80]!r}, {why}"
        )

    def scheme(self, **fields: Any) -> Scheme:
        """A scheme of these fields. Raises `CheckpointError`."""
        try:
            return Scheme(**fields)
        except SchemeError as error:
            raise CheckpointError(f"{self.files.label}: its quantization config cannot be used: {error}") from error


def group_size(settings: Settings, k: int, groups: int, where: str) -> int:
    """How many of `k` inputs share a scale, given that there are `groups`: -1 for all.

    The config's number, if it fits; for single layers there may be others. Raises `CheckpointError`.
    """
    said = settings.integer("group_size", "q_group_size")
    if said is not None and said > 0 and -(-k // said) == groups:
        return said if said <= k else -1
    if groups == 1:
        return -1
    if groups < 1 or k % groups:
        raise CheckpointError(f"{where} has {groups} groups, which {k} inputs in groups of {said} do not make")
    return k // groups
