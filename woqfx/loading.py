"""From a checkpoint to a running module tree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from woqfx.ahead import read_ahead
from woqfx.backend import Backend
from woqfx.config import build
from woqfx.cpu import this_cpu
from woqfx.disk.checkpoint import Checkpoint, is_checkpoint
from woqfx.disk.manifest import MANIFEST, short
from woqfx.errors import CheckpointError, PlanError, UnknownNameError, WoqfxError
from woqfx.foreign.files import ModelFiles
from woqfx.format import StoredModel
from woqfx.layers import find_layers
from woqfx.options import read_options
from woqfx.places import Places
from woqfx.planning import no_outliers
from woqfx.plugins import registry
from woqfx.skeleton import materialize, named_state, untie_head


def open_checkpoint(path: Path) -> StoredModel:
    """Open a folder or file in woqfx's own format, or in one that a plugin reads."""
    if is_checkpoint(path) or not path.exists():
        return Checkpoint(path)
    files = ModelFiles(path)
    form = registry().format_of(files)
    if form is None:
        raise CheckpointError(_unknown(files))
    return form.open(files)


def is_quantized(path: Path) -> bool:
    """Whether `open_checkpoint` would open it: a checkpoint of woqfx, or of a format that a plugin reads."""
    return path.exists() and (is_checkpoint(path) or registry().format_of(ModelFiles(path)) is not None)


def _unknown(files: ModelFiles) -> str:
    method = files.quantization.get("quant_method") if files.is_folder else None
    said = f"; its config says quant_method {short(method)}" if method is not None else ""
    formats = ", ".join(registry().names("format")) or "none"
    return (
        f"{files.label} has no {MANIFEST}: it is not a woqfx checkpoint (make one with woqfx quantize), and of no "
        f"other format that is read here ({formats}){said}"
    )


def load_model(
    stored: StoredModel,
    backend: Backend,
    skeleton: nn.Module | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A running model: the backend's own, or a module tree with the backend's weights in it.

    `skeleton` is the module tree for a model that transformers does not know; a backend that packs weights fills and
    returns it. `options` are the backend's.
    """
    if not isinstance(skeleton, nn.Module | None):
        raise WoqfxError(f"model is {skeleton!r}: give the module whose weights are to be replaced, or leave it out")
    chosen = read_options(f"backend {backend.name}", backend.Options, options or {})
    check_support(stored, backend)
    if backend.reads_weights(chosen):
        stored.prefetch()
    model = build_from(stored) if skeleton is None else skeleton
    untie_head(model, stored.config, (*stored.weights, *stored.kept))
    check_places(stored, model)
    if obstacles := backend.obstacles(model):
        raise PlanError([f"{stored.label}: backend {backend.name} cannot run it: {why}" for why in obstacles])
    own = backend.model(stored, model, chosen)
    return assemble(stored, backend, model, chosen) if own is None else own


def assemble(stored: StoredModel, backend: Backend, model: nn.Module, options: Any = None) -> nn.Module:
    """Pack each weight of `stored`, whose places were checked, into a module tree, and give the rest its value.

    `options` are an instance of the backend's `Options`, by default as they are when nothing is set.
    """
    chosen = backend.Options() if options is None else options
    places = Places(model, stored.label)
    packed = backend.packer(stored, chosen)
    for name, weight in read_ahead(stored.weights, packed, torch.get_num_threads()):
        places.install(name, weight)
    for name, tensor in read_ahead(stored.kept, stored.read_kept, torch.get_num_threads()):
        places.put(name, tensor)
    materialize(model)
    return model.eval()


def check_support(stored: StoredModel, backend: Backend) -> None:
    """Raise `PlanError`, with every layer's reason, if the backend cannot run all weights."""
    refused = []
    for name, weight in stored.weights.items():
        try:
            compute = registry().compute_dtype(weight.scheme.compute_dtype)
        except UnknownNameError as error:
            refused.append(f"{stored.label}: {name}: {error}")
            continue
        if weight.scheme.outlier_threshold and not compute.has_outliers:
            refused.append(f"{stored.label}: {name}: {no_outliers(compute)}")
            continue
        support = backend.supports(weight.scheme, registry().dtype(weight.scheme.dtype), weight.shape, this_cpu())
        if not support.ok:
            why = f"backend {backend.name} cannot run it: {support.reason}; {support.remedy}"
            refused.append(f"{stored.label}: {name}: {why}")
    if refused:
        raise PlanError(refused)


def build_from(stored: StoredModel) -> nn.Module:
    """The module tree that the checkpoint's config describes, on the meta device."""
    if stored.config is None:
        raise CheckpointError(
            f"{stored.label} has no config.json: pass the module tree, woqfx.load(path, model=module)"
        )
    return build(stored.config, len(stored.weights) + len(stored.kept), stored.label)


def check_places(stored: StoredModel, model: nn.Module) -> None:
    """Every tensor of the checkpoint has a place of its own in the model, in its shape, and every place a tensor."""
    state = dict(named_state(model))
    taken: dict[int, str] = {}
    for name in (*stored.weights, *stored.kept):
        if name not in state:
            raise CheckpointError(f"{stored.label}: the model has no {short(name)}")
        other = taken.setdefault(id(state[name]), name)
        if other != name:
            raise CheckpointError(
                f"{stored.label}: {other} and {name} are one tensor in the model, but the files hold both; "
                'if they differ, config.json must say "tie_word_embeddings": false'
            )
    absent = [name for name, tensor in state.items() if id(tensor) not in taken]
    if absent:
        raise CheckpointError(
            f"{stored.label} lacks {len(absent)} tensors of {type(model).__name__}, {absent[0]} for one: "
            "it is incomplete, or belongs to another model"
        )
    layers = {layer.weight: layer for layer in find_layers(model)}
    for name, weight in stored.weights.items():
        layer = layers.get(name)
        if layer is None or layer.shape != weight.shape:
            has = "no such layer" if layer is None else f"one of shape {short(layer.shape)}"
            raise CheckpointError(f"{stored.label}: {name} has shape {short(weight.shape)}; the model has {has}")
