"""From a checkpoint to a running module tree."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from woqfx.backend import Backend
from woqfx.config import build
from woqfx.cpu import this_cpu
from woqfx.disk.checkpoint import Checkpoint, is_checkpoint
from woqfx.disk.manifest import short
from woqfx.done import Done
from woqfx.errors import CheckpointError, PlanError, UnknownNameError
from woqfx.format import StoredModel
from woqfx.layers import find_layers, install
from woqfx.planning import Plan, no_outliers
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.skeleton import materialize, named_state, put
from woqfx.source import Source


def open_checkpoint(path: Path) -> StoredModel:
    """Open a folder in woqfx's own format, or in one that a plugin reads."""
    if is_checkpoint(path) or not path.is_dir():
        return Checkpoint(path)
    other = registry().format_of(path)
    return Checkpoint(path) if other is None else other.open(path)  # the former's error says what is missing


def load_model(stored: StoredModel, backend: Backend, skeleton: nn.Module | None = None) -> nn.Module:
    """A running model: the backend's own, or a module tree with the backend's weights in it.

    `skeleton` is the module tree for a model that transformers does not know; it is filled and returned.
    """
    check_support(stored, backend)
    own = backend.model(stored) if skeleton is None else None
    return assemble(stored, backend, skeleton) if own is None else own


def assemble(stored: StoredModel, backend: Backend, skeleton: nn.Module | None = None) -> nn.Module:
    """Pack each weight of `stored` into a module tree, and give everything else its value."""
    model = build_from(stored) if skeleton is None else skeleton
    _check_places(stored, model)
    layers = {layer.weight: layer for layer in find_layers(model)}
    for name, weight in stored.weights.items():
        layer = layers.get(name)
        if layer is None or layer.shape != weight.shape:
            has = "no such layer" if layer is None else f"one of shape {short(layer.shape)}"
            raise CheckpointError(f"{stored.label}: {name} has shape {short(weight.shape)}; the model has {has}")
        install(model, name, backend.pack(stored.read_weight(name), weight.float_dtype))
    for name in stored.kept:
        put(model, name, stored.read_kept(name), stored.label)
    materialize(model)
    return model.eval()


def assemble_quantized(source: Source, plan: Plan, done: Iterable[Done]) -> nn.Module:
    """A running model from tensors that were just quantized, on the source's skeleton."""
    model = copy.deepcopy(source.skeleton)
    backend = registry().backend(plan.request.backend)
    for step in done:
        if isinstance(step.result, QTensor):
            install(model, step.name, backend.pack(step.result, plan.quantized[step.name].float_dtype))
        else:
            put(model, step.name, step.result, source.label)
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


def _check_places(stored: StoredModel, model: nn.Module) -> None:
    """Every tensor of the checkpoint has a place of its own in the model, and every place a tensor."""
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
