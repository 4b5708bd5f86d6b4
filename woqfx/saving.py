"""Writing a quantized module tree as a checkpoint."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from woqfx.checkpoint import manifest, natural, small_files
from woqfx.engine import SHARD_BYTES, check_output
from woqfx.format import StoredWeight
from woqfx.layers import packed_weights
from woqfx.provenance import provenance_of
from woqfx.qtensor import QTensor
from woqfx.skeleton import named_state
from woqfx.writer import Parts, Writer


def save(model: nn.Module, out: Path, *, overwrite: bool) -> None:
    """See `woqfx.save`."""
    origin = provenance_of(model)
    packed = packed_weights(model)
    inside = tuple(f"{name}." for name in packed)
    kept: dict[str, Tensor] = {
        name: tensor.detach().cpu()
        for name, tensor in named_state(model)
        if name not in origin.aliases and not name.startswith(inside)
    }
    quantized: dict[str, QTensor] = {name: weight.qtensor() for name, weight in packed.items()}
    items: dict[str, Parts] = {}
    for name in sorted({*kept, *quantized}, key=natural):
        items[name] = {
            part: (tensor.dtype, tuple(tensor.shape)) for part, tensor in _parts(name, kept, quantized).items()
        }
    # The run cannot go on in another process: its name makes sure that none tries.
    run = {"save": uuid.uuid4().hex}
    check_output(out, run, overwrite=overwrite, resumable=False)
    writer = Writer(out, items, run, SHARD_BYTES)
    try:
        for name in items:
            writer.write(name, _parts(name, kept, quantized), None)
        weights = {name: StoredWeight(q.scheme, q.shape, packed[name].dtype) for name, q in quantized.items()}
        writer.finish(
            lambda: small_files(origin.config, origin.request, origin.sidecars()),
            lambda files: manifest(origin.request, weights, origin.errors, origin.aliases, files),
        )
    finally:
        writer.close()


def _parts(name: str, kept: Mapping[str, Tensor], quantized: Mapping[str, QTensor]) -> dict[str, Tensor]:
    if name in kept:
        return {name: kept[name]}
    return {f"{name}.{suffix}": part for suffix, part in quantized[name].tensors().items()}
