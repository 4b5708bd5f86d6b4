"""Writing a quantized module tree as a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, nn

from woqfx.backend import PackedWeight
from woqfx.disk.checkpoint import small_files
from woqfx.disk.manifest import Manifest, natural
from woqfx.disk.shards import SHARD_BYTES, Parts, safetensors_shards
from woqfx.disk.writer import open_writer
from woqfx.done import Done
from woqfx.errors import WoqfxError
from woqfx.format import StoredWeight
from woqfx.layers import packed_weights
from woqfx.provenance import provenance_of
from woqfx.skeleton import named_state, tied_aliases
from woqfx.source import TensorInfo
from woqfx.source.module import config_of, generation_of


def save(
    model: nn.Module,
    out: Path,
    *,
    overwrite: bool,
    shard_bytes: int = SHARD_BYTES,
    left_out: Collection[str] = (),
    beside: Collection[str] = (),
) -> None:
    """See `woqfx.save`. Files to carry over that are `left_out` are not; for `beside` see `woqfx.disk.output.claim`."""
    origin = provenance_of(model)
    everywhere = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, PackedWeight)}
    packed = packed_weights(model)
    if not packed and not any(True for _ in named_state(model)):
        raise WoqfxError(
            f"{type(model).__name__} runs on a backend that keeps weights in a form of its own: copy the checkpoint "
            "that it was loaded from, or quantize with out=FOLDER"
        )
    first = {id(weight): name for name, weight in packed.items()}
    inside = tuple(f"{name}." for name in everywhere)
    aliases = {name: first[id(weight)] for name, weight in everywhere.items() if name not in packed}
    aliases |= {alias: name for alias, name in tied_aliases(model).items() if not alias.startswith(inside)}
    kept = {
        name: tensor.detach().cpu()
        for name, tensor in named_state(model)
        if name not in aliases and not name.startswith(inside)
    }
    # The model as it is now, which need not be as it was quantized: it may be untied, cast, resized since.
    tensors = [TensorInfo(tuple(tensor.shape), tensor.dtype) for tensor in kept.values()]
    tensors += [TensorInfo(tuple(weight.shape), weight.dtype) for weight in packed.values()]
    config = config_of(model, tensors) or origin.config
    carried = {**origin.sidecars, **generation_of(model)}
    sidecars = {name: data for name, data in carried.items() if name not in left_out}

    def parts(name: str) -> Mapping[str, Tensor]:
        # A backend may have to unpack: one weight at a time.
        return Done(name, kept[name] if name in kept else packed[name].qtensor(), None).parts()

    names = sorted({*kept, *packed}, key=natural)
    items: dict[str, Parts] = {
        name: {part: (tensor.dtype, tuple(tensor.shape)) for part, tensor in parts(name).items()} for name in names
    }
    weights = {name: StoredWeight(weight.scheme, tuple(weight.shape), weight.dtype) for name, weight in packed.items()}
    # Any save of a module looks like any other: one that was killed is started again.
    shards = safetensors_shards(items, shard_bytes)
    run = {"save": type(model).__name__}
    writer = open_writer(out, shards, run, overwrite=overwrite, resumable=False, beside=beside)
    try:
        for name in names:
            writer.write(name, parts(name), None)
        writer.finish(
            lambda: small_files(config, origin.request, sidecars),
            lambda files: Manifest(origin.request, weights, origin.errors, aliases, files),
        )
    finally:
        writer.close()
