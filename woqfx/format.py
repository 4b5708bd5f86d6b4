"""Checkpoint formats: how a quantized model lies on disk, read one weight at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme


@dataclass(frozen=True)
class StoredWeight:
    """A quantized weight of a checkpoint, known without reading it."""

    scheme: Scheme
    shape: tuple[int, ...]
    #: The type that the weight had before.
    float_dtype: torch.dtype


class StoredModel(ABC):
    """An opened checkpoint. Names are those of the module tree's parameters."""

    #: What messages call it.
    label: str

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any] | None:
        """The model's `config.json` without its quantization; None for a module that transformers does not know."""

    @property
    @abstractmethod
    def weights(self) -> Mapping[str, StoredWeight]:
        """The quantized weights, by parameter name."""

    @property
    @abstractmethod
    def kept(self) -> tuple[str, ...]:
        """The names of the tensors that are stored as they were."""

    @property
    @abstractmethod
    def aliases(self) -> Mapping[str, str]:
        """Tied names: the later name to the stored one."""

    @abstractmethod
    def read_weight(self, name: str) -> QTensor:
        """A quantized weight, checked. Raises `CheckpointError`."""

    @abstractmethod
    def read_kept(self, name: str) -> Tensor:
        """A tensor that was kept. Raises `CheckpointError`."""


class Format(ABC):
    """A layout of quantized checkpoints."""

    #: The name that the command line uses.
    name: ClassVar[str]

    @abstractmethod
    def detect(self, folder: Path) -> bool:
        """Whether `folder` holds this format, judged from its config and tensor names alone."""

    @abstractmethod
    def open(self, folder: Path) -> StoredModel:
        """Read the headers and check them. Raises `CheckpointError`."""
