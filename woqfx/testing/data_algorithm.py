"""The laws of algorithms that look at data, beside those of all algorithms."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from woqfx.algorithm import Algorithm, Layer, Statistics
from woqfx.blocks.block import Call
from woqfx.blocks.checking import check_rounded
from woqfx.blocks.composition import Composition
from woqfx.blocks.steps import BlockWork, Loaded, QuantizedBlock
from woqfx.memory import threads
from woqfx.nearest import quantize_nearest
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme
from woqfx.testing.cases import SCHEMES, normal, same_bytes

_WIDTH = 48


class DataAlgorithmSuite(ABC):
    """Subclass it, and set `algorithm` to the class under test, which has `needs_data`."""

    @property
    @abstractmethod
    def algorithm(self) -> type[Algorithm]:
        """The class under test."""

    @property
    def variants(self) -> Sequence[Any]:
        """The options to test with: instances of `algorithm.Options`. By default, the defaults."""
        return (self.algorithm.Options(),)

    @property
    def nearest_multiple(self) -> float:
        """How many times the error of rounding to nearest the output may have. Above 1 for those that trade it."""
        return 1.0

    @pytest.mark.parametrize("label", SCHEMES)
    def test_a_weight_with_data(self, label: str) -> None:
        """The result has the form that the scheme asks for, and an output near that of rounding to nearest."""
        weight, scheme = normal(24, 80) * 0.05, SCHEMES[label]
        inputs = statistics_of(normal(400, 80, seed=1) * torch.logspace(-0.5, 0.5, 80))
        layer = Layer("layers.0.weight", weight, scheme, registry().dtype(scheme.dtype), inputs)
        nearest = quantize_nearest(weight, layer.dtype, scheme, name="weight")
        for options in self.variants:
            algorithm, before = self.algorithm(options), weight.clone()
            q = algorithm.round(layer)
            assert torch.equal(weight, before)
            check_rounded(algorithm.name, q, scheme, (24, 80))
            assert algorithm.ordered or q.order is None
            # Scales are stored in 8 bits after the algorithm has chosen them: that error is not its own.
            chance = 1.1 if scheme.double_quant else 1.0
            assert _output_error(q, layer) <= _output_error(nearest, layer) * self.nearest_multiple * chance + 1e-9

    @pytest.mark.parametrize("label", ["int4_clip-g32", "int4_clip-asym", "nf4-g24"])
    def test_a_block_goes_through_all_steps(self, label: str) -> None:
        """By two threads the same bytes as by one; its folds change nothing, the output is as near as it promises.

        Neither the block's tensors nor its data are written to.
        """
        for options in self.variants:
            results = []
            for workers in (1, 2):
                with threads(1):
                    results.append(self._quantized(SCHEMES[label], options, workers))
            one, other = results
            assert all(same_bytes(q, other.weights[name]) for name, q in one.weights.items())
            assert one.changed.keys() == other.changed.keys()
            assert all(torch.equal(tensor, other.changed[name]) for name, tensor in one.changed.items())
            assert one.facts == other.facts
            errors = one.facts["error"]
            assert list(errors.values())[-1] <= errors["nearest"] * self.nearest_multiple + 1e-9
            assert all(fold["used"] for fold in one.facts["feeds"])

    def _quantized(self, scheme: Scheme, options: Any, workers: int) -> QuantizedBlock:
        loaded = tiny_block(scheme)
        before = {name: tensor.clone() for name, tensor in loaded.parameters.items()}
        originals = dict(loaded.parameters)
        block = loaded.block(workers)
        calls = [Call((_data(number),), {}) for number in range(5)]
        with torch.no_grad():
            targets = [block.run(call) for call in calls]
        whole, probe = (
            dataclasses.replace(block, calls=calls[part], targets=targets[part]) for part in (slice(4), slice(4, None))
        )
        algorithm = self.algorithm(options)
        made = BlockWork(loaded, whole, probe, Composition(algorithm.name, (algorithm,))).quantize()
        assert all(torch.equal(originals[name], tensor) for name, tensor in before.items())
        assert all(torch.equal(call.args[0], _data(number)) for number, call in enumerate(calls))
        return made


def _output_error(q: QTensor, layer: Layer) -> float:
    """The mean square error of the output for the layer's inputs."""
    assert layer.inputs is not None
    off = q.dequantize() - layer.weight
    return float(((off @ layer.inputs.moments) * off).sum())


def statistics_of(x: Tensor) -> Statistics:
    """The statistics of inputs [n, K]."""
    return Statistics(len(x), x.T @ x / len(x), x.mean(0), x.abs().mean(0))


class _Unit(nn.Module):
    """A block with a norm that feeds two linears, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_WIDTH)
        self.gate, self.up = nn.Linear(_WIDTH, 80, bias=False), nn.Linear(_WIDTH, 80)
        self.down = nn.Linear(80, _WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        x = self.norm(hidden)
        result: Tensor = hidden + self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return result


def tiny_block(scheme: Scheme) -> Loaded:
    """A gated block of random weights, some input channels larger than others."""
    module = _Unit()
    parameters = {}
    for number, (name, parameter) in enumerate(module.named_parameters()):
        noise = normal(*parameter.shape, seed=number)
        parameters[name] = 1 + 0.5 * noise if name == "norm.weight" else 0.2 * noise
    dtype = registry().dtype(scheme.dtype)
    layers = {name: Layer(name, tensor, scheme, dtype) for name, tensor in parameters.items() if tensor.ndim == 2}
    kept = {name: torch.float32 for name in parameters if name not in layers}
    return Loaded("layers.0", module, parameters, layers, kept, frozenset())


def _data(number: int) -> Tensor:
    return normal(2, 40, _WIDTH, seed=100 + number) * torch.logspace(-0.5, 0.5, _WIDTH)
