"""The built-in algorithms that look at data keep to the laws; the suite catches those that do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from shrinking import Shrinking

import woqfx
from woqfx import registry
from woqfx.testing import DataAlgorithmSuite


class TestShrinking(DataAlgorithmSuite):
    algorithm = Shrinking


class TestAWQ(DataAlgorithmSuite):
    algorithm = registry().algorithm("awq")


class TestGPTQ(DataAlgorithmSuite):
    algorithm = registry().algorithm("gptq")


class WrongScheme(Shrinking):
    def round(self, layer):
        return replace(super().round(layer), scheme=replace(layer.scheme, compute_dtype="int8"))


class Careless(Shrinking):
    def round(self, layer):
        layer.weight.mul_(2)
        return woqfx.quantize_nearest(layer.weight / 2, layer.dtype, layer.scheme, name=layer.name)


class Unsteady(Shrinking):
    def round(self, layer):
        return woqfx.quantize_nearest(
            layer.weight + 1e-3 * torch.rand(layer.weight.shape), layer.dtype, layer.scheme, name=layer.name
        )


class Worse(Shrinking):
    def round(self, layer):
        return woqfx.quantize_nearest(layer.weight * 0.8, layer.dtype, layer.scheme, name=layer.name)


@pytest.mark.parametrize("kind", [WrongScheme, Careless, Unsteady, Worse])
def test_the_suite_catches(kind):
    suite = type("Suite", (DataAlgorithmSuite,), {"algorithm": kind})()

    def every_test():
        suite.test_a_weight_with_data("int4_clip-g32")
        suite.test_a_block_goes_through_all_steps("int4_clip-g32")

    with pytest.raises((AssertionError, woqfx.WoqfxError)):
        every_test()
