"""Blocks of tiny models, made by hand: what the engine gives to algorithms, without the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from tiny_models import tiny_inputs, tiny_model
from torch import Tensor, nn

from woqfx import Block, Call, Layer, Scheme, registry


def tiny_blocks(family: str, scheme: Scheme | None = None, *, batches: int = 1, **changes: Any) -> dict[str, Block]:
    """Every block of a tiny model, by name, with what reaches it; float targets; one worker."""
    model = tiny_model(family, **changes)
    model.config._experts_implementation = "eager"
    inputs = [tiny_inputs(model, seed=seed, length=24) for seed in range(batches)]
    return {name: make_block(name, module, calls_of(model, module, inputs), scheme) for name, module in _members(model)}


def make_block(name: str, module: nn.Module, calls: Sequence[Call], scheme: Scheme | None = None, **more: Any) -> Block:
    """A block of which every linear and every stack of experts is quantized; routers and convolutions are kept."""
    scheme = scheme or Scheme("int4_fullrange", group_size=16)
    grid = registry().dtype(scheme.dtype)
    transposed = frozenset(f"{n}.weight" for n, m in module.named_modules() if type(m).__name__ == "Conv1D")
    parameters = {n: p.detach().T if n in transposed else p.detach() for n, p in module.named_parameters()}
    linear = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    layers = {
        n: Layer(n, tensor, scheme, grid)
        for n, tensor in parameters.items()
        if n in linear | transposed or ".experts." in n
    }
    block = Block(name, module, layers, parameters, calls, [], transposed=transposed, **more)
    with torch.no_grad():
        return dataclasses.replace(block, targets=[block.run(call) for call in calls])


def calls_of(model: nn.Module, module: nn.Module, inputs: Sequence[Mapping[str, Tensor]]) -> list[Call]:
    """How the model calls a module, for each of the model's inputs."""
    calls: list[Call] = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(Call(args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        for batch in inputs:
            model(**batch, use_cache=False)
    handle.remove()
    return calls


def _members(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    lists = ("layers", "h", "block")
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] in lists:
            yield from ((f"{name}.{key}", member) for key, member in module.named_children())
