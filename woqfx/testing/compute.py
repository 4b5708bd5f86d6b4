"""The laws of compute dtypes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pytest
import torch
from torch import Tensor

from woqfx.compute import ComputeDType
from woqfx.contracts import fault_of
from woqfx.memory import threads
from woqfx.qtensor import QTensor
from woqfx.testing.cases import (
    OFFSET_CASES,
    SCHEMES,
    normal,
    permuted,
    quantized,
    relative_error,
    with_offsets,
)

N, K = 24, 80  # K is ragged for groups of 24, 32 and 48


def _exact(x: Tensor, weight: QTensor, bias: Tensor | None) -> Tensor:
    """`x @ W.T + bias` in float64, W as it is stored."""
    product = x.double() @ weight.dequantize().double().T
    return product if bias is None else product + bias.double()


class ComputeDTypeSuite(ABC):
    """Subclass it; set `compute` to the compute dtype under test, and `tolerance` to what its numbers allow."""

    @property
    @abstractmethod
    def compute(self) -> ComputeDType:
        """The compute dtype under test."""

    @property
    @abstractmethod
    def tolerance(self) -> float:
        """The largest |y - exact| / |exact| over a matrix of normal activations and weights, x and y in float32."""

    def test_the_registry_takes_it(self) -> None:
        """It keeps to the form that the registry checks of every plugin."""
        assert fault_of("compute dtype", self.compute) == ""

    @pytest.mark.parametrize("label", SCHEMES)
    def test_error(self, label: str) -> None:
        """Within the stated tolerance of float64 arithmetic with the stored weight, for every dtype and scheme."""
        q, x, bias = quantized(SCHEMES[label], N, K), normal(33, K, seed=1), normal(N, seed=2)
        assert relative_error(self.compute.matmul(x, q, None), _exact(x, q, None)) <= self.tolerance
        assert relative_error(self.compute.matmul(x, q, bias), _exact(x, q, bias)) <= self.tolerance

    @pytest.mark.parametrize("label", SCHEMES)
    def test_rows_are_independent(self, label: str) -> None:
        """A row's result is the same in every bit, whatever rows stand beside it and however many."""
        q, x, bias = quantized(SCHEMES[label], N, K), normal(33, K, seed=1), normal(N, seed=2)
        alone = torch.cat([self.compute.matmul(x[i : i + 1], q, bias) for i in range(len(x))])
        for count in (2, 3, 4, 5, 8, 16, 17, 33):
            assert torch.equal(self.compute.matmul(x[:count], q, bias), alone[:count])
            assert torch.equal(self.compute.matmul(x[-count:], q, bias), alone[-count:])

    @pytest.mark.parametrize("n", [1, 3, 300])
    @pytest.mark.parametrize("k", [1, 7, 33, 1000])
    def test_any_shape(self, n: int, k: int) -> None:
        """Ragged and tiny matrices work."""
        q, x = quantized(SCHEMES["int4_clip-asym"], n, k), normal(5, k, seed=1)
        y = self.compute.matmul(x, q, None)
        assert y.shape == (5, n)
        assert torch.isfinite(y).all()
        assert float((y.double() - _exact(x, q, None)).abs().max()) <= 8 * self.tolerance * float(
            x.double().norm(dim=1).max() * q.dequantize().double().norm(dim=1).max()
        )
        assert torch.equal(self.compute.matmul(x[2:3], q, None), y[2:3])

    @pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
    def test_the_result_has_the_type_of_x(self, kind: torch.dtype) -> None:
        """x and bias of any float type: sums are float32, and only the result is rounded."""
        q, x, bias = (
            quantized(SCHEMES["nf4-g32"], N, K),
            normal(9, K, seed=1, dtype=kind),
            normal(N, seed=2, dtype=kind),
        )
        y = self.compute.matmul(x, q, bias)
        assert y.dtype == kind
        assert torch.equal(y, self.compute.matmul(x.float(), q, bias.float()).to(kind))

    @pytest.mark.parametrize("lead", [(), (1,), (2, 3), (0,)], ids=str)
    def test_leading_dimensions_are_rows(self, lead: tuple[int, ...]) -> None:
        """x [..., K] is its rows, an empty batch and a single vector included."""
        q, x = quantized(SCHEMES["int8-g24"], N, K), normal(*lead, K, seed=1)
        y = self.compute.matmul(x, q, None)
        assert y.shape == (*lead, N)
        assert torch.equal(y.reshape(-1, N), self.compute.matmul(x.reshape(-1, K), q, None))

    def test_strides_do_not_matter(self) -> None:
        """A transposed x gives the result of its copy."""
        q, x = quantized(SCHEMES["int4_clip-g32"], N, K), normal(K, 9, seed=1).T
        assert torch.equal(self.compute.matmul(x, q, None), self.compute.matmul(x.contiguous(), q, None))

    @pytest.mark.parametrize("label", ["int8-g32", "int4_clip-asym", "nf4-g24", "fp4_e2m1-double"])
    def test_the_order_of_inputs(self, label: str) -> None:
        """Codes in another order of inputs (GPTQ's act-order) meet the inputs that they belong to."""
        q, x = permuted(quantized(SCHEMES[label], N, K)), normal(9, K, seed=1)
        assert relative_error(self.compute.matmul(x, q, None), _exact(x, q, None)) <= self.tolerance

    @pytest.mark.parametrize("label", OFFSET_CASES)
    def test_offsets(self, label: str) -> None:
        """Groups may have an offset of any value in place of a zero point."""
        q, x = with_offsets(quantized(SCHEMES[label], N, K)), normal(33, K, seed=1)
        y = self.compute.matmul(x, q, None)
        assert relative_error(y, _exact(x, q, None)) <= self.tolerance
        for count in (1, 2, 5, 16):
            assert torch.equal(self.compute.matmul(x[:count], q, None), y[:count])

    def test_zeros_give_the_bias(self) -> None:
        """Rows of zeros are no special case."""
        q, bias = quantized(SCHEMES["int4_clip-asym"], N, K), normal(N, seed=2)
        assert torch.equal(self.compute.matmul(torch.zeros(3, K), q, bias), bias.expand(3, N))

    def test_inputs_are_left_as_they_were(self) -> None:
        """Neither x nor bias is written to."""
        q, x, bias = quantized(SCHEMES["nf4-g32"], N, K), normal(9, K, seed=1), normal(N, seed=2)
        kept_x, kept_bias = x.clone(), bias.clone()
        self.compute.matmul(x, q, bias)
        assert torch.equal(x, kept_x) and torch.equal(bias, kept_bias)

    def test_threads_do_not_matter(self) -> None:
        """One thread and two give the same bits."""
        q, x = quantized(SCHEMES["int4_clip-g32"], 300, 500), normal(70, 500, seed=1)
        results = []
        for count in (1, 2):
            with threads(count):
                results.append(self.compute.matmul(x, q, None))
        assert torch.equal(*results)
