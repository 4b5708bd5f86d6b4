"""The laws of algorithms."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from woqfx.algorithm import Algorithm, Layer
from woqfx.contracts import fault_of
from woqfx.errors import WeightError
from woqfx.memory import threads
from woqfx.nearest import quantize_nearest
from woqfx.options import read_options
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme
from woqfx.testing.cases import SCHEMES, normal, relative_error, same_bytes


class AlgorithmSuite(ABC):
    """Subclass it, and set `algorithm` to the class under test."""

    @property
    @abstractmethod
    def algorithm(self) -> type[Algorithm]:
        """The class under test."""

    @property
    def variants(self) -> Sequence[Any]:
        """The options to test with: instances of `algorithm.Options`. By default, the defaults."""
        return (self.algorithm.Options(),)

    @property
    def rtn_multiple(self) -> float:
        """How many times the error of rounding to nearest, |W - W'|, it may have. Above 1 for those that trade it."""
        return 1.0

    def _round(self, weight: Tensor, scheme: Scheme, options: Any) -> QTensor:
        layer = Layer("layers.0.weight", weight, scheme, registry().dtype(scheme.dtype))
        return self.algorithm(options).round(layer)

    def test_the_registry_takes_it(self) -> None:
        """It keeps to the form that the registry checks of every plugin."""
        assert fault_of("algorithm", self.algorithm) == ""

    def test_options_can_be_read_from_names_and_values(self) -> None:
        """As the command line and saved requests give them; each has a help text."""
        for options in self.variants:
            assert isinstance(options, self.algorithm.Options)
            assert read_options("algorithm", self.algorithm.Options, dataclasses.asdict(options)) == options
        assert all(field.metadata.get("help") for field in dataclasses.fields(self.algorithm.Options))

    @pytest.mark.parametrize("label", SCHEMES)
    def test_every_dtype_and_scheme(self, label: str) -> None:
        """The result has the form that the scheme asks for, and an error near that of rounding to nearest."""
        weight, scheme = normal(24, 80) * 0.05, SCHEMES[label]
        dtype = registry().dtype(scheme.dtype)
        nearest = relative_error(quantize_nearest(weight, dtype, scheme, name="weight").dequantize(), weight)
        for options in self.variants:
            q = self._round(weight, scheme, options)
            assert (q.dtype.name, q.scheme, tuple(q.shape)) == (scheme.dtype, scheme, tuple(weight.shape))
            again = QTensor.from_tensors(dtype, scheme, (24, 80), q.tensors(), name="weight")
            assert torch.isfinite(again.dequantize()).all()
            # Scales are stored in 8 bits after the algorithm has chosen them: that error is not its own.
            chance = 1.05 if scheme.double_quant else 1.0
            assert relative_error(q.dequantize(), weight) <= nearest * self.rtn_multiple * chance + 1e-6

    @pytest.mark.parametrize("label", ["int4_clip-g32", "int8-asym", "nf4-double"])
    def test_the_same_inputs_give_the_same_bytes(self, label: str) -> None:
        """On every run, with one thread and with two."""
        weight = normal(70, 500)
        for options in self.variants:
            results = []
            for count in (1, 2, 2):
                with threads(count):
                    results.append(self._round(weight.clone(), SCHEMES[label], options))
            assert same_bytes(results[0], results[1]) and same_bytes(results[1], results[2])

    @pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
    def test_the_weight_is_left_as_it_was(self, kind: torch.dtype) -> None:
        """In any float type; a short float quantizes as its float32 does."""
        weight = normal(24, 80, dtype=kind)
        kept = weight.clone()
        for options in self.variants:
            q = self._round(weight, SCHEMES["int4_clip-g32"], options)
            assert torch.equal(weight, kept)
            assert same_bytes(q, self._round(kept.float(), SCHEMES["int4_clip-g32"], options))

    @pytest.mark.parametrize("shape", [(1, 1), (1, 33), (3, 7), (40, 1), (3, 4, 80), (2, 3, 4, 40)], ids=str)
    def test_any_shape(self, shape: tuple[int, ...]) -> None:
        """Tiny matrices, ragged groups, and stacks of experts."""
        for options in self.variants:
            for label in ("int4_fullrange-g32", "int4_clip-asym", "nf4-g24"):
                q = self._round(normal(*shape), SCHEMES[label], options)
                assert tuple(q.shape) == shape
                assert torch.isfinite(q.dequantize()).all()

    def test_zeros(self) -> None:
        """A weight of zeros, and one with a row of zeros, stay so."""
        weight = normal(4, 80)
        weight[1] = 0
        for options in self.variants:
            for label in ("int4_clip-g32", "int8-asym", "nf4-g24"):
                assert not self._round(torch.zeros(4, 80), SCHEMES[label], options).dequantize().any()
                assert not self._round(weight, SCHEMES[label], options).dequantize()[1].any()

    @pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
    def test_a_bad_weight_is_an_error_with_its_name(self, value: float) -> None:
        """NaN and infinity are named, not spread over a group."""
        weight = normal(4, 80)
        weight[2, 33] = value
        for options in self.variants:
            with pytest.raises(WeightError, match=r"layers\.0\.weight"):
                self._round(weight, SCHEMES["int4_clip-g32"], options)
