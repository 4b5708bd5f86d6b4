"""GGUF files, whose weights lie in GGML's blocks."""

from __future__ import annotations

from functools import partial

from woqfx import BlockReader, Format, GGUFModel, ModelFiles, Obstacle, Output, StoredModel
from woqfx.errors import CheckpointError
from woqfx_formats import gguf_writing
from woqfx_formats.codecs import gguf_blocks, gguf_superblocks
from woqfx_formats.codecs.gguf_blocks import BLOCK_TYPES
from woqfx_formats.codecs.gguf_superblocks import SUPER_BLOCK_TYPES
from woqfx_formats.gguf_families import FAMILIES

_MAGIC = b"GGUF"


class GGUF(Format):
    """A file of llama.cpp. Weights stay packed where their blocks are known, and are dequantized where they are not."""

    name = "gguf"
    title = "GGUF (llama.cpp)"
    writes = f"{', '.join(BLOCK_TYPES)}, for {', '.join(FAMILIES)}"
    checked_with = "gguf, llama.cpp"
    reads = f"{', '.join((*BLOCK_TYPES, *SUPER_BLOCK_TYPES))}; other types are dequantized"

    def detect(self, files: ModelFiles) -> bool:
        """See `Format.detect`."""
        if files.is_folder or not files.path.is_file():
            return False
        try:
            with files.path.open("rb") as file:
                return file.read(len(_MAGIC)) == _MAGIC
        except OSError as error:
            raise CheckpointError(f"cannot read {files.path}: {error.strerror}; check its permissions") from error

    def open(self, files: ModelFiles) -> StoredModel:
        """See `Format.open`."""
        readers = {
            one.name: BlockReader(one.scheme, one.has_offset, partial(gguf_blocks.decode, one))
            for one in BLOCK_TYPES.values()
        }
        readers |= {
            one.name: BlockReader(one.scheme, one.has_offset, partial(gguf_superblocks.decode, one))
            for one in SUPER_BLOCK_TYPES.values()
        }
        return GGUFModel(files.path, readers)

    def obstacles(self, model: StoredModel) -> list[Obstacle]:
        """See `Format.obstacles`."""
        return gguf_writing.obstacles(model)

    def output(self, model: StoredModel) -> Output:
        """See `Format.output`."""
        return gguf_writing.GGUFOutput(model)
