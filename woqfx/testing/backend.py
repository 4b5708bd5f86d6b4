"""The laws of backends."""

from __future__ import annotations

import copy
import gc
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from woqfx.backend import Backend, PackedWeight
from woqfx.contracts import fault_of
from woqfx.cpu import CPU, this_cpu
from woqfx.memory import threads
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme
from woqfx.testing.cases import (
    OFFSET_CASES,
    SCHEMES,
    normal,
    permuted,
    quantized,
    relative_error,
    same_bytes,
    with_offsets,
)

N, K = 24, 80
COMPUTE = ("fp32", "bf16", "int8")
_every_scheme = pytest.mark.parametrize("label", SCHEMES)
_every_compute = pytest.mark.parametrize("compute", COMPUTE)


class BackendSuite(ABC):
    """Subclass it, and set `backend` to the backend under test. What it does not support is skipped."""

    @property
    @abstractmethod
    def backend(self) -> Backend:
        """The backend under test."""

    @property
    def tolerance(self) -> float:
        """The largest |y - reference| / |reference| over a matrix; 0 for every bit."""
        return 1e-5

    def _pack(self, scheme: Scheme, *shape: int, kind: torch.dtype = torch.float32) -> tuple[QTensor, PackedWeight]:
        dtype = registry().dtype(scheme.dtype)
        support = self.backend.supports(scheme, dtype, shape, this_cpu())
        if not support.ok:
            pytest.skip(f"{self.backend.name} does not support it: {support.reason}")
        q = quantized(scheme, *shape)
        return q, self.backend.pack(q, kind)

    def _reference(self, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None) -> torch.Tensor:
        return registry().compute_dtype(q.scheme.compute_dtype).matmul(x, q, bias)

    def test_the_registry_takes_it(self) -> None:
        """It keeps to the form that the registry checks of every plugin."""
        assert fault_of("backend", self.backend) == ""

    @_every_compute
    @_every_scheme
    def test_support_is_explained(self, label: str, compute: str) -> None:
        """Each answer names a kernel and why, or a reason and what would work, on any machine, for any shape."""
        scheme = replace(SCHEMES[label], compute_dtype=compute)
        dtype = registry().dtype(scheme.dtype)
        for cpu in (this_cpu(), CPU("x86_64", "a CPU of 2003", frozenset()), CPU("aarch64", "another", frozenset())):
            for shape in ((1, 1), (N, K), (4, N, K), (4096, 4096)):
                support = self.backend.supports(scheme, dtype, shape, cpu)
                assert support.kernel if support.ok else support.reason and support.remedy

    @_every_compute
    @_every_scheme
    def test_linear(self, label: str, compute: str) -> None:
        """`linear` gives what the compute dtype's reference gives, and a row's result does not depend on its batch."""
        q, packed = self._pack(replace(SCHEMES[label], compute_dtype=compute), N, K)
        x, bias = normal(19, K, seed=1), normal(N, seed=2)
        y = packed.linear(x, bias)
        assert relative_error(y, self._reference(x, q, bias)) <= self.tolerance
        assert relative_error(packed.linear(x), self._reference(x, q, None)) <= self.tolerance
        for count in (1, 2, 3, 4, 5, 8, 16, 17):
            assert torch.equal(packed.linear(x[:count], bias), y[:count])
            assert torch.equal(packed.linear(x[-count:], bias), y[-count:])

    @_every_scheme
    def test_what_was_packed_comes_back(self, label: str) -> None:
        """`qtensor` is equal in every bit to what was packed; `dequantize` and `rows` are its weights."""
        q, packed = self._pack(SCHEMES[label], N, K, kind=torch.bfloat16)
        assert same_bytes(packed.qtensor(), q)
        assert (tuple(packed.shape), packed.dtype, packed.device.type) == ((N, K), torch.bfloat16, "cpu")
        weight = q.dequantize().bfloat16()
        assert torch.equal(packed.dequantize(), weight)
        index = torch.tensor([[0, N - 1, 3], [3, 3, 7]])
        assert torch.equal(packed.rows(index), weight[index])

    @_every_scheme
    def test_experts(self, label: str) -> None:
        """One weight of a stack computes as if it were alone, and shares the stack's memory."""
        q, packed = self._pack(SCHEMES[label], 3, N, K)
        x = normal(5, K, seed=1)
        assert same_bytes(packed.qtensor(), q)
        for i in range(3):
            expert = packed.expert(i)
            assert torch.equal(expert.dequantize(), q.dequantize()[i])
            assert relative_error(expert.linear(x), self._reference(x, q[i], None)) <= self.tolerance
            assert torch.equal(nn.functional.linear(x, packed[i]), expert.linear(x))  # type: ignore[arg-type]
        largest = max(packed.expert(1).buffers(), key=lambda buffer: buffer.nbytes)
        shared = {buffer.untyped_storage().data_ptr() for buffer in packed.buffers()}
        assert largest.untyped_storage().data_ptr() in shared

    @_every_compute
    @pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
    def test_types_of_x(self, kind: torch.dtype, compute: str) -> None:
        """The result has x's type, for a bias of that type; a tensor subclass of none."""
        q, packed = self._pack(replace(SCHEMES["int4_clip-g32"], compute_dtype=compute), N, K, kind=kind)
        x, bias = normal(2, 3, K, seed=1, dtype=kind), normal(N, seed=2, dtype=kind)
        y = packed.linear(x, bias)
        assert y.dtype == kind and y.shape == (2, 3, N)
        step = torch.finfo(kind).eps
        assert relative_error(y, self._reference(x.float(), q, bias.float())) <= self.tolerance + step
        assert torch.equal(nn.functional.linear(x, packed, bias), y)  # type: ignore[arg-type]

    def test_it_stands_in_for_a_parameter(self) -> None:
        """In the calls that model code makes with one; a change of the model's type leaves the codes alone."""
        q, packed = self._pack(SCHEMES["int4_clip-asym"], N, K)
        weight: Any = packed
        x, bias, index = normal(5, K, seed=1), normal(N, seed=2), torch.tensor([[1, 5], [0, N - 1]])
        y = packed.linear(x, bias)
        assert torch.equal(nn.functional.linear(x, weight, bias), y)
        assert torch.equal(torch.addmm(bias, x, weight), y)
        assert torch.equal(nn.functional.embedding(index, weight), packed.rows(index))
        packed.to(torch.bfloat16)
        assert packed.dtype == packed.rows(index).dtype == packed.dequantize().dtype == torch.bfloat16
        assert same_bytes(packed.qtensor(), q)
        assert torch.equal(packed.linear(x, bias), y)

    @_every_compute
    def test_the_order_of_inputs(self, compute: str) -> None:
        """Permuted inputs (GPTQ's act-order) are followed and come back."""
        scheme = replace(SCHEMES["int4_clip-g32"], compute_dtype=compute)
        self._pack(scheme, N, K)
        q, x = permuted(quantized(scheme, N, K)), normal(5, K, seed=1)
        packed = self.backend.pack(q, torch.float32)
        assert relative_error(packed.linear(x), self._reference(x, q, None)) <= self.tolerance
        assert same_bytes(packed.qtensor(), q)
        assert torch.equal(packed.dequantize(), q.dequantize())
        stack = permuted(quantized(scheme, 2, N, K))
        packed = self.backend.pack(stack, torch.float32)
        assert same_bytes(packed.qtensor(), stack)
        for number in range(2):
            reference = self._reference(x, stack[number], None)
            assert relative_error(packed.expert(number).linear(x), reference) <= self.tolerance

    @_every_compute
    @pytest.mark.parametrize("label", OFFSET_CASES)
    def test_offsets(self, label: str, compute: str) -> None:
        """Offsets in place of zeros (GGUF's Q4_1) are computed with and come back."""
        scheme = replace(SCHEMES[label], compute_dtype=compute)
        self._pack(scheme, N, K)
        q, x = with_offsets(quantized(scheme, N, K)), normal(19, K, seed=1)
        packed = self.backend.pack(q, torch.float32)
        y = packed.linear(x)
        assert relative_error(y, self._reference(x, q, None)) <= self.tolerance
        for count in (1, 2, 5, 8, 17):
            assert torch.equal(packed.linear(x[:count]), y[:count])
        assert same_bytes(packed.qtensor(), q)
        assert torch.equal(packed.dequantize(), q.dequantize())
        assert torch.equal(packed.rows(torch.arange(N)), q.dequantize())

    @_every_compute
    @pytest.mark.parametrize("shape", [(1, 1), (3, 7), (300, 33), (16, 1000)], ids=str)
    def test_any_shape(self, shape: tuple[int, int], compute: str) -> None:
        """Ragged and tiny matrices, an empty batch, and no batch."""
        for label in ("int8-g32", "int4_clip-asym", "nf4-g24"):
            q, packed = self._pack(replace(SCHEMES[label], compute_dtype=compute), *shape)
            x = normal(5, shape[1], seed=1)
            assert relative_error(packed.linear(x), self._reference(x, q, None)) <= max(self.tolerance, 1e-6)
            assert packed.linear(x[:0]).shape == (0, shape[0])
            assert torch.equal(packed.linear(x[0]), packed.linear(x)[0])

    @_every_compute
    def test_threads_do_not_matter(self, compute: str) -> None:
        """One thread and two give the same bits."""
        _, packed = self._pack(replace(SCHEMES["int4_clip-g32"], compute_dtype=compute), 300, 500)
        x, results = normal(70, 500, seed=1), []
        for count in (1, 2):
            with threads(count):
                results.append(packed.linear(x))
        assert torch.equal(*results)

    def test_several_threads_pack_at_once(self) -> None:
        """As loading does; each gets what it would have got alone."""
        scheme, x = SCHEMES["int4_clip-asym"], normal(5, K, seed=1)
        alone = [self._pack(scheme, N + i, K)[1].linear(x) for i in range(8)]
        weights = [quantized(scheme, N + i, K) for i in range(8)]
        with ThreadPoolExecutor(4) as pool:
            packed = list(pool.map(lambda q: self.backend.pack(q, torch.float32), weights))
        assert all(torch.equal(one.linear(x), expected) for one, expected in zip(packed, alone, strict=True))

    def test_no_dense_copy_is_kept(self) -> None:
        """After a forward, no tensor of the weight's size is alive that was not before."""
        n, k = 512, 512
        _, packed = self._pack(SCHEMES["int4_clip-g32"], n, k)
        x = normal(2, k, seed=1)
        packed.linear(x)  # what a first call sets up once for all weights is no copy of this one
        before = _bytes_alive()
        packed.linear(x)
        packed.rows(torch.tensor([0, 1]))
        assert _bytes_alive() - before < n * k
        dense = 4 * n * k
        assert sum(buffer.nbytes for buffer in packed.buffers()) < dense / 2
        assert not list(packed.parameters())

    def test_a_deep_copy_is_independent(self) -> None:
        """`copy.deepcopy` of a model works, and the copy computes the same."""
        q, packed = self._pack(SCHEMES["nf4-double"], N, K)
        x = normal(5, K, seed=1)
        expected = packed.linear(x)
        twin = copy.deepcopy(packed)
        del packed
        gc.collect()
        assert torch.equal(twin.linear(x), expected)
        assert same_bytes(twin.qtensor(), q)

    def test_inputs_are_left_as_they_were(self) -> None:
        """Neither x nor bias is written to, and the result is not one of them."""
        _, packed = self._pack(SCHEMES["int4_clip-g32"], N, K)
        x, bias = normal(5, K, seed=1), normal(N, seed=2)
        kept: tuple[Any, Any] = (x.clone(), bias.clone())
        packed.linear(x, bias).zero_()
        assert torch.equal(x, kept[0]) and torch.equal(bias, kept[1])

    def test_it_introduces_itself(self) -> None:
        """`print(model)` names the dtype and the kernel."""
        _, packed = self._pack(SCHEMES["nf4-g32"], N, K)
        assert packed.kernel and packed.kernel in repr(packed) and "nf4" in repr(packed)


def _bytes_alive() -> int:
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)  # by exact type: proxies and fake tensors have no memory to ask for
    tensors = [thing for thing in gc.get_objects() if type(thing) in kinds]
    return sum(
        {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.device.type == "cpu"
        }.values()
    )
