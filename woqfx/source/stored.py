"""What sources that read files have in common: every tensor of the skeleton is there, once, in the right shape."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from woqfx.errors import SourceError
from woqfx.skeleton import initial_buffers, named_state, tied_aliases, told_untied
from woqfx.source.base import Source, TensorInfo
from woqfx.source.metadata import normalized_config, prevailing_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

_SHOWN = 20  # names in a message


class StoredSource(Source):
    """A model in files. A subclass knows what they hold (`available`) and reads one of those tensors (`fetch`).

    Raises `SourceError` if a tensor that the skeleton needs is neither stored (under one of its tied names)
    nor a buffer that transformers initialises when a checkpoint lacks it, or has another shape.
    """

    resumable = True

    def __init__(self, skeleton: PreTrainedModel, label: str, available: Mapping[str, TensorInfo]) -> None:
        self.skeleton: PreTrainedModel = skeleton
        self.label = label
        self._aliases = tied_aliases(skeleton)
        names = defaultdict(list)
        for alias, name in self._aliases.items():
            names[name].append(alias)
        wanted = {name: tuple(tensor.shape) for name, tensor in named_state(skeleton) if name not in self._aliases}
        self._stored = {name: [n for n in (name, *names[name]) if n in available] for name in wanted}
        self._initial = self._initial_values([name for name, stored in self._stored.items() if not stored])
        self._tensors = {
            name: available[stored[0]] if stored else _info(self._initial[name])
            for name, stored in self._stored.items()
        }
        self._check_shapes(wanted, available)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """As in `Source`."""
        return self._tensors

    @property
    def aliases(self) -> Mapping[str, str]:
        """As in `Source`."""
        return self._aliases

    def read(self, name: str) -> torch.Tensor:
        """As in `Source`. A tied tensor that is stored more than once must be stored alike."""
        if not self._stored[name]:
            return self._initial[name]
        first, *others = self._stored[name]
        tensor = self.fetch(first)
        for other in others:
            if not _same_bytes(tensor, self.fetch(other)):
                raise SourceError(
                    f"{self.label}: {first} and {other} are one tensor by the config, but the files hold two different "
                    'ones; set "tie_word_embeddings": false in config.json if both are meant'
                )
        return tensor

    @abstractmethod
    def fetch(self, name: str) -> torch.Tensor:
        """The tensor of the name `name` in the module tree, which the files hold."""

    def config(self) -> dict[str, Any]:
        """As in `Source`."""
        skeleton = self.skeleton
        dtype = prevailing_dtype(self._tensors.values())
        return normalized_config(skeleton.config, type(skeleton).__name__, dtype) | told_untied(skeleton)

    def _initial_values(self, missing: list[str]) -> dict[str, torch.Tensor]:
        ignorable = self.skeleton._keys_to_ignore_on_load_missing or ()
        buffers = {name for name, _ in self.skeleton.named_buffers()}
        ignored = {name for name in missing if any(re.search(pattern, name) for pattern in ignorable)}
        optional = [name for name in missing if name in ignored & buffers]
        values = initial_buffers(self.skeleton, optional) if optional else {}
        absent = [name for name in missing if name not in values]
        if absent:
            raise SourceError(
                f"{self.label} lacks {len(absent)} of the tensors that {type(self.skeleton).__name__} needs: "
                f"{_listed(absent)}; files are missing, or the config belongs to another model"
            )
        return values

    def _check_shapes(self, wanted: Mapping[str, tuple[int, ...]], available: Mapping[str, TensorInfo]) -> None:
        wrong = [
            f"{stored} is {list(available[stored].shape)}, not {list(shape)}"
            for name, shape in wanted.items()
            for stored in self._stored[name]
            if available[stored].shape != shape
        ]
        if wrong:
            raise SourceError(
                f"{self.label}: {len(wrong)} tensors have another shape than {type(self.skeleton).__name__} with this "
                f"config gives them: {_listed(wrong, '; ')}; the config belongs to another model"
            )


def _info(tensor: torch.Tensor) -> TensorInfo:
    return TensorInfo(tuple(tensor.shape), tensor.dtype)


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    # Bytes and not numbers: a NaN differs from itself.
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _listed(names: list[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + more
