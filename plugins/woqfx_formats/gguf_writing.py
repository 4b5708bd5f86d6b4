"""Writing GGUF files for llama.cpp: weights in blocks of 32 with fp16 scales, the rest in floating point."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from woqfx import Obstacle, Output, Scheme, StoredModel, StoredWeight, layers_of, registry
from woqfx.errors import CheckpointError
from woqfx_formats.codecs.gguf_blocks import BLOCK, BLOCK_TYPES, BlockType, encode
from woqfx_formats.gguf_architecture import Architecture, Piece
from woqfx_formats.gguf_tokenizer import describe_tokenizer

FILE = "model.gguf"

_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
_FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def obstacles(model: StoredModel) -> list[Obstacle]:
    """The weights that have no block type. Where scales are no fp16 numbers by type, they are looked at.

    Raises `CheckpointError` for a model that GGUF has no words for.
    """
    architecture = Architecture.of(model)
    pieces = {name: architecture.pieces(name) for name in (*model.weights, *model.kept)}
    found = []
    for name, weight in model.weights.items():
        if any(piece.is_float32 for piece in pieces[name]):
            found.append(Obstacle(name, "llama.cpp has it in float32", None))
            continue
        kind = block_type(weight)
        reason = kind if isinstance(kind, str) else _odd_numbers(model, name, kind)
        if reason:
            found.append(Obstacle(name, reason, _nearest(weight)))
    return found


def block_type(weight: StoredWeight) -> BlockType | str:
    """The block type that holds a weight's codes exactly, or why there is none."""
    scheme, k = weight.scheme, weight.shape[-1]
    dtype = registry().dtype(scheme.dtype)
    if k % BLOCK or scheme.group_width(k) % BLOCK:
        return f"groups of {scheme.group_width(k)} in rows of {k} are not made of blocks of {BLOCK}"
    if weight.ordered:
        return "its inputs are permuted"
    if dtype.levels is not None:
        fitting = [kind for kind in BLOCK_TYPES.values() if kind.dtype == scheme.dtype]
        return fitting[0] if fitting else f"GGUF has no table {scheme.dtype}"
    if not scheme.symmetric and not weight.offsets:
        return "it has zero points, where GGUF has offsets in fp16"
    wide = "Q4" if dtype.bits <= 4 else "Q5" if dtype.bits == 5 else "Q8"
    if weight.offsets and wide == "Q8":
        return f"GGUF has no offsets beside codes of {dtype.bits} bits"
    return BLOCK_TYPES[f"{wide}_{int(weight.offsets)}"]


def _odd_numbers(model: StoredModel, name: str, kind: BlockType) -> str:
    if kind.scale_dtype == model.weights[name].scheme.scale_dtype == "fp16":
        return ""
    try:
        encode(kind, model.read_weight(name), name)
    except CheckpointError as error:
        return str(error).partition(": ")[2]
    return ""


def _nearest(weight: StoredWeight) -> Scheme | None:
    if weight.shape[-1] % BLOCK:
        return None
    dtype = registry().dtype(weight.scheme.dtype)
    if dtype.levels is not None:
        return Scheme("iq4_nl", BLOCK)
    return Scheme("int4_fullrange" if dtype.bits <= 4 else "int5" if dtype.bits == 5 else "int8", BLOCK)


class GGUFOutput(Output):
    """A model as one GGUF file. Norms and biases are float32, as llama.cpp wants them; matrices keep their type."""

    def __init__(self, model: StoredModel) -> None:
        self._model = model
        self._architecture = Architecture.of(model)
        self._pieces = {name: self._architecture.pieces(name) for name in (*model.weights, *model.kept)}
        self._transposed = {name for name, layer in layers_of(model).items() if layer.transposed}
        self._extra = self._architecture.extra_tensors()

    @cached_property
    def items(self) -> Mapping[str, Mapping[str, tuple[torch.dtype, tuple[int, ...]]]]:
        """See `Output.items`: embedding, blocks in order, norm, head; then what the model does not have as a tensor."""
        made: dict[str, Mapping[str, tuple[torch.dtype, tuple[int, ...]]]] = {
            name: {piece.name: (self._type(name, piece), piece.shape(self._shape(name))) for piece in pieces}
            for name, pieces in self._pieces.items()
        }
        return made | {name: {name: (part.dtype, tuple(part.shape))} for name, part in self._extra.items()}

    def _kind(self, name: str) -> BlockType | None:
        if name not in self._model.weights:
            return None
        kind = block_type(self._model.weights[name])
        assert isinstance(kind, BlockType)
        return kind

    def _type(self, name: str, piece: Piece) -> torch.dtype:
        if self._kind(name):
            return torch.uint8
        info = self._model.kept[name]
        is_matrix = len(info.shape) > 1 and not piece.is_float32
        return info.dtype if is_matrix and info.dtype in _FLOATS else torch.float32

    def _shape(self, name: str) -> tuple[int, ...]:
        kind = self._kind(name)
        if kind is None:
            shape = self._model.kept[name].shape
            return shape[::-1] if name in self._transposed else shape
        *lead, k = self._model.weights[name].shape
        return (*lead, k // BLOCK * kind.nbytes)

    def parts(self, item: str) -> Mapping[str, Tensor]:
        """See `Output.parts`."""
        if item in self._extra:
            return {item: self._extra[item]}
        whole = self._blocks(item) if item in self._model.weights else self._numbers(item)
        return {
            piece.name: self._architecture.rows(piece, piece.take(whole)).to(self._type(item, piece)).contiguous()
            for piece in self._pieces[item]
        }

    def _blocks(self, name: str) -> Tensor:
        kind = self._kind(name)
        assert kind is not None
        return encode(kind, self._model.read_weight(name), f"{self._model.label}: {name}")

    def _numbers(self, name: str) -> Tensor:
        kept = self._model.read_kept(name)
        if self._architecture.is_shifted(name):
            return kept.float() + 1
        return kept.T if name in self._transposed else kept

    def small_files(self) -> Mapping[str, bytes]:
        """See `Output.small_files`: there are none, everything is in the one file."""
        return {}

    def shards(self, shard_bytes: int) -> Sequence[Any]:
        """See `Output.shards`: one file, of whatever size."""
        from woqfx import Entry, Layout, Shard

        header = self._header()
        entries, position = {}, len(header)
        for parts in self.items.values():
            for name, (dtype, shape) in parts.items():
                nbytes = dtype.itemsize * torch.Size(shape).numel()
                entries[name] = Entry(dtype, shape, position, position + nbytes)
                position = _padded(position + nbytes)
        return [Shard(FILE, Layout(header, entries, position), tuple(self.items))]

    def _header(self) -> bytes:
        """Metadata and the table of tensors, up to where the data begin."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, FILE)
            writer = gguf.GGUFWriter(path, self._architecture.name)
            writer.add_type(gguf.GGUFType.MODEL)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            writer.add_file_type(self._file_type())
            self._architecture.describe(writer)
            files = self._model.sidecars()
            describe_tokenizer(writer, files, self._architecture.vocabulary, self._model.label)
            for item, parts in self.items.items():
                for name, (dtype, shape) in parts.items():
                    self._add_info(writer, item, name, dtype, shape)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            writer.close()
            header = path.read_bytes()
        return header + bytes(_padded(len(header)) - len(header))

    def _add_info(
        self, writer: gguf.GGUFWriter, item: str, name: str, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> None:
        kind = self._kind(item)
        raw = gguf.GGMLQuantizationType[kind.name if kind else _FLOATS[dtype]]
        nbytes = dtype.itemsize * torch.Size(shape).numel()
        described = np.dtype(np.uint8 if kind else np.float32)
        writer.add_tensor_info(name, shape, described, nbytes, raw_dtype=raw)

    def _file_type(self) -> gguf.LlamaFileType:
        """The type of most weights, by which llama.cpp calls the file."""
        kinds = Counter(kind.name for name in self._model.weights if (kind := self._kind(name)))
        if not kinds:
            return gguf.LlamaFileType.ALL_F32
        name = kinds.most_common(1)[0][0]
        return gguf.LlamaFileType[f"MOSTLY_{'MXFP4_MOE' if name == 'MXFP4' else name}"]


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
