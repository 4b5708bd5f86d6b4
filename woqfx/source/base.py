"""What the engine needs to know of a model: its structure, and its tensors one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as `Source.read` will return it, known without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Source(ABC):
    """A model to quantize: a live module, a folder or a GGUF file.

    Names are the module tree's own (`module.state_dict()` of the transformers class that the config
    names), whatever the file calls its tensors. A tensor that two names share is listed once, under
    the name that comes first in the tree.
    """

    #: The module tree: the live module, or one on the meta device. Never changed by a source.
    skeleton: nn.Module
    #: What messages call this model: a path, or a class name.
    label: str
    #: Whether a killed run can go on: the same source can be opened again and is known to be unchanged.
    resumable: bool

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor to keep, in the order of the module tree: parameters and persistent buffers."""

    @property
    def unexpected(self) -> tuple[str, ...]:
        """Stored tensors that the model has no place for; they are not carried over."""
        return ()

    @property
    @abstractmethod
    def aliases(self) -> Mapping[str, str]:
        """Tied names: the later name to the listed one (`lm_head.weight` to `model.embed_tokens.weight`)."""

    @abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """The tensor, contiguous, on the CPU, not to be written to.

        Raises `SourceError`, naming file and tensor, if it cannot be read as its header promised.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest that changes whenever a tensor may have changed; cheap (headers, sizes, times)."""

    @abstractmethod
    def config(self) -> dict[str, Any] | None:
        """The content of `config.json` for the output, normalised; None for a module that has none.

        The same for a folder and for the live model that was loaded from it. Holds no path, no version
        of a library, and nothing that could make code run (`auto_map`).
        """

    @abstractmethod
    def sidecars(self) -> Mapping[str, bytes]:
        """Files to carry over by name: generation config, tokenizer, chat template."""
