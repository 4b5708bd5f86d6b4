"""A GGUF file as a source: dequantized to float32, in the names and layouts of transformers."""

from __future__ import annotations

import tempfile
import weakref
from collections import defaultdict
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from woqfx.errors import CheckpointError, SourceError
from woqfx.skeleton import named_state
from woqfx.source.base import TensorInfo
from woqfx.source.conversion import Conversion
from woqfx.source.files import ModelFolder
from woqfx.source.gguf_file import GGUFFile
from woqfx.source.metadata import folder_sidecars, generation_sidecar
from woqfx.source.stored import StoredSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PreTrainedConfig, PreTrainedModel


_MOST_ROWS = 1 << 22  # row numbers, and halves between them, are exact in float32


@dataclass(frozen=True)
class Rows:
    """A parameter made of whole rows: row i is row `order[i]` of the stored tensors `pieces`, one after the other."""

    pieces: tuple[str, ...]
    order: torch.Tensor


class GGUFSource(StoredSource):
    """A GGUF file of an architecture that transformers reads.

    Config, names, layouts and tokenizer are those that `from_pretrained(folder, gguf_file=name)` gives, and
    so are the values, in float32. Construction reads the header only. Raises `SourceError` for a damaged
    file and for architectures that cannot be read tensor by tensor.
    """

    def __init__(self, path: str | Path) -> None:
        with ExitStack() as opened:
            self._file = opened.enter_context(closing(GGUFFile(Path(path))))
            with self._settings_file() as settings:
                skeleton = _build(self._file, settings)
                self._conversion = _conversion(self._file, settings, skeleton)
            try:
                super().__init__(skeleton, str(path), self._conversion.tensors)
            except SourceError as error:
                raise SourceError(f"GGUF architecture {self._file.architecture!r}: {error}") from error
            weakref.finalize(self, opened.pop_all().close)

    def _settings_file(self) -> AbstractContextManager[Path]:
        """A file with the header's settings for transformers to read.

        The whole file where transformers counts the vocabulary: if its size is not stated, and in the newer rules.
        """
        from transformers.integrations.gguf.utils import is_gguf_arch_supported

        architecture = self._file.architecture
        if is_gguf_arch_supported(architecture) or f"{architecture}.vocab_size" not in self._file.metadata:
            return nullcontext(self._file.path)
        return self._file.without_vocabulary()

    @property
    def unexpected(self) -> tuple[str, ...]:
        """As in `Source`."""
        return self._conversion.unexpected

    def fetch(self, name: str) -> torch.Tensor:
        """As in `StoredSource`."""
        made = self._conversion.build(name, self._file.read)
        if tuple(made.shape) != self._conversion.tensors[name].shape:
            raise _strange(name, self._conversion.origins(name))
        return made

    @property
    def file(self) -> GGUFFile:
        """The open file."""
        return self._file

    def pieces_of(self, name: str) -> list[str]:
        """The file's tensors that the tensor `name` is read from; none if transformers initialises it."""
        stored = self._stored[name]
        return self._conversion.origins(stored[0]) if stored else []

    def rows_of(self, name: str, shape: tuple[int, ...], *, transposed: bool = False) -> Rows | None:
        """Which rows of the file's tensors make up the parameter `name`, which is logically [..., N, K] = `shape`.

        None if it is made otherwise (values or columns change), or is stored more than once. Reads nothing: row
        numbers go through the conversion in place of weights, in two columns that differ by a half.
        """
        stored = self._stored[name]
        if len(stored) != 1:
            return None
        pieces = self._conversion.origins(stored[0])
        shapes = {piece: self._file.tensors[piece].shape for piece in pieces}
        if any(len(one) < 2 or one[-1] != shape[-1] for one in shapes.values()):
            return None
        counts = [prod(one[:-1]) for one in shapes.values()]
        if sum(counts) != prod(shape[:-1]) or sum(counts) > _MOST_ROWS:
            return None
        numbers = torch.arange(sum(counts), dtype=torch.float32).unsqueeze(-1) + torch.tensor([0.0, 0.5])
        stand_ins = {
            piece: numbers[end - count : end].reshape(*shapes[piece][:-1], 2)
            for piece, count, end in zip(pieces, counts, accumulate(counts), strict=True)
        }
        try:
            made = self._conversion.build(stored[0], lambda piece: stand_ins[piece].clone())
        except Exception:  # transformers' rules, on a tensor of two columns: those that look at columns fail
            return None
        made = made.T if transposed else made
        if tuple(made.shape) != (*shape[:-1], 2):
            return None
        order = made[..., 0].flatten().long()
        if not torch.equal(made.reshape(-1, 2), numbers[order.clamp(0, len(numbers) - 1)]):
            return None
        return Rows(tuple(pieces), order)

    def fingerprint(self) -> str:
        """As in `Source`: header, size and time of the file."""
        return self._file.fingerprint()

    def sidecars(self) -> Mapping[str, bytes]:
        """As in `Source`: the tokenizer is rebuilt from the file's metadata."""
        from woqfx.source.tokenizer import load_tokenizer

        skeleton = self.skeleton
        files = generation_sidecar(skeleton.generation_config) if skeleton.can_generate() else {}
        if self._file.metadata.get("tokenizer.ggml.model", "no_vocab") == "no_vocab":
            return files
        path = self._file.path
        with tempfile.TemporaryDirectory() as folder:
            try:
                load_tokenizer(path).save_pretrained(folder)
            except Exception as error:  # transformers' parsers on metadata of any kind
                raise SourceError(f"{path} holds a tokenizer that transformers cannot rebuild: {error}") from error
            return files | folder_sidecars(ModelFolder(folder))


class _Conversion(Protocol):
    """The part of `Conversion` that this source needs."""

    tensors: dict[str, TensorInfo]
    unexpected: tuple[str, ...]

    def origins(self, name: str) -> list[str]: ...

    def build(self, name: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor: ...


class _ProcessorConversion:
    """GGUF names and layouts to the model's by transformers' tensor processors.

    A processor takes one GGUF tensor at a time and either returns it in the model's layout or writes its part
    of a parameter that several GGUF tensors make up (a mixture's gate and up projections).
    """

    def __init__(self, file: GGUFFile, settings: Path, model: PreTrainedModel) -> None:
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
            load_gguf_checkpoint,
        )

        read_settings: Any = load_gguf_checkpoint
        processor: Any = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)
        self._processor: Any = processor(config=read_settings(str(settings))["config"])
        try:
            self._names: dict[str, str] = get_gguf_hf_weights_map(_Submodels(model), self._processor)
        except NotImplementedError as error:
            raise SourceError(f"{file.path}: {error}") from error
        pieces: defaultdict[str, list[str]] = defaultdict(list)
        strangers = []
        for name in file.tensors:
            target = self._names.get(name, self._names.get(name.removesuffix(".weight")))
            if target is None:
                strangers.append(name)
            else:
                pieces[target].append(name)
        self._pieces = dict(pieces)
        self.unexpected = tuple(strangers)
        shapes = {name: tuple(tensor.shape) for name, tensor in named_state(model)}
        self.tensors = {
            target: TensorInfo(_shape(shapes.get(target), [file.tensors[name].shape for name in names]), torch.float32)
            for target, names in self._pieces.items()
        }

    def origins(self, name: str) -> list[str]:
        """The file's names of the pieces of a tensor."""
        return self._pieces[name]

    def build(self, name: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """Make one tensor of the module tree, with `read` to fetch those of the file."""
        written: dict[str, torch.Tensor] = {}
        for piece in self._pieces[name]:
            result = self._processor.process(
                weights=read(piece).numpy(),
                name=piece,
                tensor_key_mapping=self._names,
                parsed_parameters={"tensors": written},
            )
            if result.name is not None:
                written[name] = torch.from_numpy(np.ascontiguousarray(result.weights))
        if name not in written:
            raise _strange(name, self._pieces[name])
        return written[name]


def _strange(name: str, pieces: list[str]) -> SourceError:
    return SourceError(
        f"{name} cannot be put together from {', '.join(pieces)}; the file is damaged, or of an architecture that "
        "transformers does not read"
    )


class _Submodels:
    """As much of a model as `get_gguf_hf_weights_map` looks at, with no children but models.

    It looks for GGUF names at every module of the tree and builds the table of names anew for each, some
    20 ms; but only names relative to a model are ever in the table.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.config = model.config
        self._model = model

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(named_state(self._model))

    def named_children(self) -> list[tuple[str, _Submodels]]:
        from transformers import PreTrainedModel

        children = self._model.named_children()
        return [(name, _Submodels(child)) for name, child in children if isinstance(child, PreTrainedModel)]


def _shape(wanted: tuple[int, ...] | None, stored: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The model's shape if the stored tensors have as many elements, else one of theirs, to be reported."""
    if wanted is not None and prod(wanted) == sum(prod(shape) for shape in stored):
        return wanted
    return stored[0]


def _build(file: GGUFFile, settings: Path) -> PreTrainedModel:
    """The module tree, no larger than the file can fill."""
    from woqfx.config import build_parsed, check_numbers  # which needs this package

    own = {key: value for key, value in file.metadata.items() if key.startswith(f"{file.architecture}.")}
    try:
        check_numbers(own, f"{file.path}: its header")
        return build_parsed(_load_config(file, settings), len(file.tensors), str(file.path))
    except CheckpointError as error:
        raise SourceError(str(error)) from error


def _load_config(file: GGUFFile, settings: Path) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            settings.parent, gguf_file=settings.name, local_files_only=True
        )
    except Exception as error:  # transformers' parsers on metadata of any kind
        raise SourceError(
            f"{file.path}: no config can be made of this GGUF file of architecture {file.architecture!r}: {error}; "
            "give the original model in safetensors"
        ) from error
    config.dtype = torch.float32
    return config


def _conversion(file: GGUFFile, settings: Path, model: PreTrainedModel) -> _Conversion:
    """Transformers keeps newer architectures' rules as weight transforms, the others' as tensor processors."""
    from transformers.integrations.gguf.utils import get_gguf_conversion_mapping, is_gguf_arch_supported

    if is_gguf_arch_supported(file.architecture):
        rules: Any = get_gguf_conversion_mapping(file.architecture, model.config)
        return Conversion(model, rules, file.tensors)
    return _ProcessorConversion(file, settings, model)
