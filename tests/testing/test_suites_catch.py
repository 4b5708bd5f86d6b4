"""The suites can fail: each law, broken on purpose, is caught by the test that states it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from woqfx import Algorithm, GroupParams, Support, option, quantize_nearest
from woqfx.testing import AlgorithmSuite, BackendSuite, ComputeDTypeSuite, DTypeSuite
from woqfx_compute.references import FP32
from woqfx_dtypes.grids import NF4, Int4Clip
from woqfx_rtn.rtn import RTN
from woqfx_torch_cpu.backend import TorchCPU
from woqfx_torch_cpu.reference import ReferenceWeight

_kept: list[torch.Tensor] = []


class Ceiling(Int4Clip):
    def encode(self, groups, params):
        return super().encode(groups + params.scale.unsqueeze(-1) / 3, params)


class NeighboursCount(Int4Clip):
    def fit(self, groups, *, symmetric, shrink=1.0):
        params = super().fit(groups, symmetric=symmetric, shrink=shrink)
        return replace(params, scale=params.scale * 0 + params.scale.amax())


class Absolute(Int4Clip):
    def fit(self, groups, *, symmetric, shrink=1.0):
        params = super().fit(groups, symmetric=symmetric, shrink=shrink)
        return replace(params, scale=params.scale.clamp(min=1e-3))


class Unshrinkable(Int4Clip):
    def fit(self, groups, *, symmetric, shrink=1.0):
        return super().fit(groups, symmetric=symmetric)


class ZeroBetweenCodes(Int4Clip):
    def fit(self, groups, *, symmetric, shrink=1.0):
        params = super().fit(groups, symmetric=symmetric, shrink=shrink)
        return params if params.zero is None else replace(params, zero=params.zero + 0.5)


class OtherIntegers(NF4):
    def integers(self, codes, params):
        whole, scale = super().integers(codes, params)
        return whole + 1, scale


class NoZeros(NF4):
    def fit(self, groups, *, symmetric, shrink=1.0):
        return GroupParams(super().fit(groups, symmetric=symmetric, shrink=shrink).scale * 0)


class Clipping(NF4):
    def fit(self, groups, *, symmetric, shrink=1.0):
        return super().fit(groups, symmetric=symmetric, shrink=shrink * 0.9)


class Scribbler(Int4Clip):
    def encode(self, groups, params):
        codes = super().encode(groups, params)
        groups.zero_()
        return codes


@pytest.mark.parametrize(
    ("grid", "test"),
    [
        (Ceiling(), "test_no_other_code_is_nearer"),
        (NeighboursCount(), "test_groups_are_independent"),
        (Scribbler(), "test_groups_are_independent"),
        (Absolute(), "test_the_unit_does_not_matter"),
        (Unshrinkable(), "test_shrink_narrows_the_scale_by_its_ratio"),
        (ZeroBetweenCodes(), "test_zero_is_stored_exactly_when_asymmetric"),
        (OtherIntegers(), "test_integers_are_whole_and_stand_for_the_same_weights"),
        (NoZeros(), "test_a_group_of_zeros"),
        (NoZeros(), "test_the_registry_takes_it"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_dtypes(grid, test):
    class Suite(DTypeSuite):
        dtype = grid

    with pytest.raises(AssertionError):
        getattr(Suite(), test)()


def test_a_fit_that_clips_is_not_idempotent():
    class Suite(DTypeSuite):
        dtype = Clipping()

    with pytest.raises(AssertionError):
        Suite().test_quantizing_twice_changes_nothing(32, "fp16")


class DependsOnBatch(FP32):
    def matmul(self, x, weight, bias):
        return super().matmul(x, weight, bias) * (1 + 1e-6 * (x.dim() > 1 and len(x) > 3))


class Coarse(FP32):
    def matmul(self, x, weight, bias):
        return super().matmul(x.bfloat16().to(x.dtype), weight, bias)


class ForgetsOrder(FP32):
    def matmul(self, x, weight, bias):
        return super().matmul(x, replace(weight, order=None), bias)


class HalfSums(FP32):
    def matmul(self, x, weight, bias):
        return super().matmul(x, weight, None) + (0 if bias is None else bias.to(x.dtype))


class FloatsOnly(FP32):
    def matmul(self, x, weight, bias):
        return super().matmul(x.float(), weight, bias)


@pytest.mark.parametrize(
    ("subject", "test", "arguments"),
    [
        (DependsOnBatch(), "test_rows_are_independent", ["nf4-g32"]),
        (Coarse(), "test_error", ["nf4-g32"]),
        (ForgetsOrder(), "test_the_order_of_inputs", ["nf4-g24"]),
        (HalfSums(), "test_the_result_has_the_type_of_x", [torch.float16]),
        (FloatsOnly(), "test_the_registry_takes_it", []),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_compute_dtypes(subject, test, arguments):
    class Suite(ComputeDTypeSuite):
        compute = subject
        tolerance = 1e-6

    with pytest.raises(AssertionError):
        getattr(Suite(), test)(*arguments)


class Dice(Algorithm):
    name = "dice"

    def round(self, layer):
        noise = torch.rand_like(layer.weight) * 0.1
        return quantize_nearest(layer.weight + noise, layer.dtype, layer.scheme, name=layer.name)


class InPlace(Algorithm):
    name = "in-place"

    def round(self, layer):
        layer.weight.mul_(1.5)
        return super().round(layer)


class OtherScheme(Algorithm):
    name = "other-scheme"

    def round(self, layer):
        scheme = replace(layer.scheme, group_size=16)
        return quantize_nearest(layer.weight, layer.dtype, scheme, name=layer.name)


class Careless(Algorithm):
    name = "careless"

    def round(self, layer):
        return super().round(replace(layer, weight=layer.weight.nan_to_num()))


@dataclass(frozen=True)
class Mute:
    amount: int = 3


class Undocumented(Algorithm):
    name, Options = "undocumented", Mute


@dataclass(frozen=True)
class Documented:
    amount: int = option(3, "how much")


@pytest.mark.parametrize(
    ("subject", "test", "arguments"),
    [
        (Dice, "test_the_same_inputs_give_the_same_bytes", ["nf4-double"]),
        (Dice, "test_every_dtype_and_scheme", ["int4_clip-g32"]),
        (InPlace, "test_the_weight_is_left_as_it_was", [torch.float32]),
        (OtherScheme, "test_every_dtype_and_scheme", ["int4_clip-g32"]),
        (Undocumented, "test_options_can_be_read_from_names_and_values", []),
        (Mute, "test_the_registry_takes_it", []),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", "with"),
)
def test_algorithms(subject, test, arguments):
    class Suite(AlgorithmSuite):
        algorithm = subject

    with pytest.raises(AssertionError):
        getattr(Suite(), test)(*arguments)


def test_an_algorithm_that_hides_nan():
    class Suite(AlgorithmSuite):
        algorithm = Careless

    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        Suite().test_a_bad_weight_is_an_error_with_its_name(float("nan"))


class Dense(ReferenceWeight):
    """Keeps what it once dequantized."""

    def linear(self, x, bias=None):
        _kept.append(self.dequantize())
        return super().linear(x, bias)


class Requantized(ReferenceWeight):
    def qtensor(self):
        q = super().qtensor()
        return RTN().round(_layer(q)) if q.scheme.double_quant else q


def _layer(q):
    from woqfx import Layer

    return Layer("again", q.dequantize(), q.scheme, q.dtype)


class BatchDependent(ReferenceWeight):
    def linear(self, x, bias=None):
        return super().linear(x, bias) * (1 + 1e-6 * (x.dim() > 1 and len(x) > 3))


def backend(weight, answer: Support | None = None) -> TorchCPU:
    class Broken(TorchCPU):
        def supports(self, scheme, dtype, shape, cpu):
            return answer or super().supports(scheme, dtype, shape, cpu)

        def pack(self, q, float_dtype):
            return weight(q, float_dtype, "broken")

    return Broken()


@pytest.mark.parametrize(
    ("subject", "test", "arguments"),
    [
        (backend(Dense), "test_no_dense_copy_is_kept", []),
        (backend(Requantized), "test_what_was_packed_comes_back", ["nf4-double"]),
        (backend(BatchDependent), "test_linear", ["nf4-g32", "fp32"]),
        (backend(ReferenceWeight, Support(ok=False)), "test_support_is_explained", ["nf4-g32", "fp32"]),
        (backend(ReferenceWeight, Support(ok=False, reason="no")), "test_support_is_explained", ["nf4-g32", "fp32"]),
        (backend(ReferenceWeight, Support(ok=True)), "test_support_is_explained", ["nf4-g32", "fp32"]),
    ],
    ids=["dense-copy", "other-bytes", "batch", "no-reason", "no-remedy", "no-kernel"],
)
def test_backends(subject, test, arguments):
    class Suite(BackendSuite):
        backend = subject

    with pytest.raises(AssertionError):
        getattr(Suite(), test)(*arguments)
    _kept.clear()
