"""Checkpoint formats: how a quantized model lies on disk, read and written one weight at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme

if TYPE_CHECKING:
    from woqfx.disk.shards import Shard
    from woqfx.foreign.files import ModelFiles
    from woqfx.source.base import TensorInfo


@dataclass(frozen=True)
class StoredWeight:
    """A quantized weight of a checkpoint, known without reading it.

    `ordered` says that its inputs are permuted (GPTQ's act-order), `offsets` that its groups have an offset in floating
    point instead of a zero point.
    """

    scheme: Scheme
    shape: tuple[int, ...]
    #: The type that the weight had before.
    float_dtype: torch.dtype
    ordered: bool = False
    offsets: bool = False


class StoredModel(ABC):
    """An opened checkpoint. Names are those of the module tree's parameters. Several threads may read from it."""

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
    def kept(self) -> Mapping[str, TensorInfo]:
        """The tensors that are not quantized, by parameter name: shape and type as `read_kept` gives them."""

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

    def prefetch(self) -> None:  # noqa: B027 - not every format has something to fetch
        """Weights will be read soon, mostly in order: a format may have the system fetch the first ones meanwhile."""

    @property
    def notes(self) -> Mapping[str, str]:
        """What a user should know of single tensors, by name: for instance that one had to be dequantized."""
        return {}

    @property
    def request(self) -> Mapping[str, Any]:
        """What was asked for when it was made, as manifests hold it; empty if that is not known."""
        return {}

    @property
    def errors(self) -> Mapping[str, float | None]:
        """The relative error |W - W'| / |W| of quantized weights, as measured when they were made."""
        return {}

    def sidecars(self) -> Mapping[str, bytes]:
        """The files that go with the model, by name: tokenizer, generation config."""
        return {}

    def fingerprint(self) -> str:
        """A digest that changes whenever a tensor may have changed; empty if a killed conversion cannot go on."""
        return ""


@dataclass(frozen=True)
class Obstacle:
    """A weight that a format cannot hold as it is: why, and what it can hold in its place.

    `instead` is the scheme that would fit, or None for the weight in floating point.
    """

    name: str
    reason: str
    instead: Scheme | None


class Output(ABC):
    """A checkpoint to be written: what it will hold is known before any weight is read."""

    @property
    @abstractmethod
    def items(self) -> Mapping[str, Mapping[str, tuple[torch.dtype, tuple[int, ...]]]]:
        """What to write, in order: for each weight or kept tensor of the model, its tensors with type and shape."""

    @abstractmethod
    def parts(self, item: str) -> Mapping[str, Tensor]:
        """The tensors of one item, as `items` lists them."""

    @abstractmethod
    def small_files(self) -> Mapping[str, bytes]:
        """The files beside the weights: `config.json` with what readers of the format look for, tokenizer and so on."""

    def shards(self, shard_bytes: int) -> Sequence[Shard]:
        """The files of weights: safetensors, of at most `shard_bytes` each where that is possible."""
        from woqfx.disk.shards import safetensors_shards

        return safetensors_shards(self.items, shard_bytes)


class Format(ABC):
    """A layout of quantized checkpoints. A format that is only read overrides neither `obstacles` nor `output`."""

    #: The name that the command line uses.
    name: ClassVar[str]
    #: What the table of formats says: whose layout it is, what is read, what is written, what it was checked with.
    title: ClassVar[str] = ""
    reads: ClassVar[str] = ""
    writes: ClassVar[str] = ""
    checked_with: ClassVar[str] = ""

    @abstractmethod
    def detect(self, files: ModelFiles) -> bool:
        """Whether `files` are of this format, judged from config and tensor names alone."""

    @abstractmethod
    def open(self, files: ModelFiles) -> StoredModel:
        """Read the headers and check them. Raises `CheckpointError`."""

    @property
    def can_write(self) -> bool:
        """Whether it can be written at all."""
        return type(self).output is not Format.output

    def obstacles(self, model: StoredModel) -> Sequence[Obstacle]:
        """Which weights of `model` it cannot hold exactly, judged from headers alone; if none, it can be written."""
        raise NotImplementedError

    def output(self, model: StoredModel) -> Output:
        """How `model`, to which there are no obstacles, will be written."""
        raise NotImplementedError
