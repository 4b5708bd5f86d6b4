"""Writing a quantized module tree as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from woqfx.checkpoint import small_files
from woqfx.engine import Done
from woqfx.format import StoredWeight
from woqfx.layers import packed_weights
from woqfx.manifest import Manifest, natural
from woqfx.provenance import provenance_of
from woqfx.skeleton import named_state
from woqfx.writer import Parts, open_writer


def save(model: nn.Module, out: Path, *, overwrite: bool) -> None:
    """See `woqfx.save`."""
    origin = provenance_of(model)
    packed = packed_weights(model)
    inside = tuple(f"{name}." for name in (*packed, *origin.aliases))
    kept = {
        name: tensor.detach().cpu()
        for name, tensor in named_state(model)
        if name not in origin.aliases and not name.startswith(inside)
    }

    def parts(name: str) -> Mapping[str, Tensor]:
        # A backend may have to unpack: one weight at a time.
        return Done(name, kept[name] if name in kept else packed[name].qtensor(), None).parts()

    names = sorted({*kept, *packed}, key=natural)
    items: dict[str, Parts] = {
        name: {part: (tensor.dtype, tuple(tensor.shape)) for part, tensor in parts(name).items()} for name in names
    }
    weights = {name: StoredWeight(weight.scheme, tuple(weight.shape), weight.dtype) for name, weight in packed.items()}
    # Any save of a module looks like any other: one that was killed is started again.
    writer = open_writer(out, items, {"save": type(model).__name__}, overwrite=overwrite, resumable=False)
    try:
        for name in names:
            writer.write(name, parts(name), None)
        writer.finish(
            lambda: small_files(origin.config, origin.request, origin.sidecars),
            lambda files: Manifest(origin.request, weights, origin.errors, origin.aliases, files),
        )
    finally:
        writer.close()
