"""Quantized layers as the tensors of a folder show them: `PREFIX.qweight`, `PREFIX.scales` and so on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from woqfx import ModelFiles
from woqfx.errors import CheckpointError


@dataclass(frozen=True)
class Module:
    """One quantized layer: the stored names of its tensors by their last part, in the folder that holds them."""

    files: ModelFiles
    prefix: str
    parts: Mapping[str, str]

    @property
    def weight(self) -> str:
        """The name that its weight would have if it were not quantized."""
        return f"{self.prefix}.weight"

    def shape(self, part: str) -> tuple[int, ...]:
        """The stored shape of a part."""
        return self.files.tensors[self.parts[part]].shape

    def dtype(self, part: str) -> torch.dtype:
        """The stored type of a part."""
        return self.files.tensors[self.parts[part]].dtype

    def expect(self, part: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]) -> None:
        """Check the header's type and shape of a part. Raises `CheckpointError`."""
        if part not in self.parts:
            held = ", ".join(self.parts.values())
            raise CheckpointError(f"{self.files.label}: {self.prefix[:200]} has no {part} (it has {held})")
        if self.dtype(part) not in dtypes or self.shape(part) != shape:
            wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise self.bad(part, f"where its layer needs {wanted} {list(shape)}")

    def bad(self, part: str, what: str) -> CheckpointError:
        """An error about a part, whose type and shape it names."""
        found = f"{str(self.dtype(part)).removeprefix('torch.')} {list(self.shape(part))}"
        return CheckpointError(f"{self.files.where(self.parts[part])} is {found}, {what}")


def modules_with(files: ModelFiles, leaf: str, others: tuple[str, ...]) -> list[Module]:
    """The layers of which a tensor `PREFIX.leaf` is stored, with those of `others` that are stored beside it."""
    names = files.tensors
    prefixes = [name.removesuffix(f".{leaf}") for name in names if name.endswith(f".{leaf}")]
    return [
        Module(files, prefix, {part: f"{prefix}.{part}" for part in (leaf, *others) if f"{prefix}.{part}" in names})
        for prefix in prefixes
    ]
