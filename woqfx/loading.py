"""From a checkpoint to a running module tree."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from woqfx.backend import Backend
from woqfx.checkpoint import Checkpoint, is_checkpoint
from woqfx.cpu import this_cpu
from woqfx.engine import Done
from woqfx.errors import CheckpointError, PlanError
from woqfx.format import StoredModel
from woqfx.layers import find_layers, install
from woqfx.planning import Plan
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.skeleton import build_skeleton, materialize
from woqfx.source import Source


def open_checkpoint(path: Path) -> StoredModel:
    """Open a folder in woqfx's own format, or in one that a plugin reads."""
    if is_checkpoint(path) or not path.is_dir():
        return Checkpoint(path)
    for candidate in registry().formats():
        if candidate.detect(path):
            return candidate.open(path)
    return Checkpoint(path)  # whose error says what is missing


def assemble(stored: StoredModel, backend: Backend, skeleton: nn.Module | None = None) -> nn.Module:
    """Pack each weight of `stored` into a module tree, and give everything else its value."""
    check_support(stored, backend)
    model = build_from(stored) if skeleton is None else skeleton
    layers = {layer.weight: layer for layer in find_layers(model)}
    for name, weight in stored.weights.items():
        layer = layers.get(name)
        if layer is None or layer.shape != weight.shape:
            has = "no such layer" if layer is None else f"one of shape {list(layer.shape)}"
            raise CheckpointError(f"{stored.label}: {name} has shape {list(weight.shape)}; the model has {has}")
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
        support = backend.supports(weight.scheme, registry().dtype(weight.scheme.dtype), weight.shape, this_cpu())
        if not support.ok:
            refused.append(f"{name}: backend {backend.name} cannot run it: {support.reason}; {support.remedy}")
    if refused:
        raise PlanError(refused)


def build_from(stored: StoredModel) -> nn.Module:
    """The module tree that the checkpoint's config describes, on the meta device."""
    from transformers import AutoConfig

    if stored.config is None:
        raise CheckpointError(
            f"{stored.label} has no config.json: pass the module tree, woqfx.load(path, model=module)"
        )
    config: dict[str, Any] = dict(stored.config)
    try:
        parsed = AutoConfig.for_model(**config)
    except Exception as error:
        raise CheckpointError(
            f"{stored.label}: config.json describes no model that transformers knows: {error}"
        ) from error
    return build_skeleton(parsed)


def put(model: nn.Module, name: str, tensor: Tensor, label: str) -> None:
    """Give a parameter or buffer its value, under every name that shares it."""
    owner, _, key = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        raise CheckpointError(f"{label}: the model has no {name}") from None
    held: Mapping[str, Any] = module._parameters if key in module._parameters else module._buffers
    current = held.get(key)
    if current is None:
        raise CheckpointError(f"{label}: the model has no {name}")
    if current.shape != tensor.shape:
        raise CheckpointError(f"{label}: {name} has shape {list(tensor.shape)}; the model's is {list(current.shape)}")
    if key in module._buffers:
        module._buffers[key] = tensor
        return
    parameter = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    for other in model.modules():
        for place in [place for place, value in other._parameters.items() if value is current]:
            other._parameters[place] = parameter
