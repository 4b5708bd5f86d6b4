"""Filling a module tree of transformers' with the weights of a model that is quantized on the way."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from woqfx import engine
from woqfx.api import calibrate, provenance_of_run
from woqfx.asking import read_request
from woqfx.backend import Backend
from woqfx.errors import PlanError
from woqfx.layers import packed_weights
from woqfx.places import Places
from woqfx.planned import Plan
from woqfx.planning import make_plan
from woqfx.plugins import registry
from woqfx.pretrained import remember
from woqfx.progress import showing
from woqfx.qtensor import QTensor
from woqfx.skeleton import materialize, named_state
from woqfx.source import FolderSource, Source


def fill_quantized(model: PreTrainedModel, folder: Path, config: Any) -> None:
    """Quantize the model in `folder`, a tensor or a block at a time, each into its place in the tree of `model`."""
    source = FolderSource(folder, _plain_config(model))
    plan = make_plan(source, read_request({"config": config}))
    plan.check()
    _check_tree(source, model, plan)
    for warning in plan.warnings:
        warnings.warn(warning, stacklevel=2)
    calibration = calibrate(source, plan)
    backend = registry().backend(plan.request.backend)
    facts: dict[str, Mapping[str, Any]] = {}
    places = Places(model, source.label)
    with showing("auto"):
        for step in engine.quantize_in_memory(source, plan, calibration):
            if isinstance(step.result, QTensor):
                places.install(step.name, backend.pack(step.result, plan.quantized[step.name].float_dtype))
            else:
                places.put(step.name, step.result)
            facts[step.name] = step.facts()
    materialize(model)
    remember(model, provenance_of_run(source, plan, calibration, facts))


def convert(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give tensors, and what stands in the places of some, the types that the caller of `from_pretrained` asked for."""
    for name, weight in packed_weights(model).items():
        weight.dtype = dtypes.get(name, weight.dtype)
    for name, tensor in named_state(model):
        if (wanted := dtypes.get(name, tensor.dtype)) != tensor.dtype:
            tensor.data = tensor.data.to(wanted)


def _plain_config(model: PreTrainedModel) -> Any:
    """The config that the caller may have changed, of the class that was asked for."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    del config.quantization_config
    return config


def _check_tree(source: Source, model: PreTrainedModel, plan: Plan) -> None:
    """What is quantized with the source's tree must be what stands in the caller's."""
    problems = []
    if type(source.skeleton) is not type(model):
        problems.append(
            f"{type(model).__name__} is a class that transformers does not have under this name; load the model first, "
            "then give it to woqfx.quantize"
        )
    backend = registry().backend(plan.request.backend)
    if type(backend).model is not Backend.model:
        problems.append(
            f"backend {backend.name} runs whole models by itself, which no module tree of transformers can: "
            f'use woqfx.quantize(folder, backend="{backend.name}")'
        )
    if problems:
        raise PlanError(problems)
