from __future__ import annotations

import numpy as np
import pytest
import torch

import woqfx
from woqfx.quality import relative_error


@pytest.mark.parametrize("shape", [(1, 1), (7, 100), (3, 5, 33), (600, 1500)], ids=str)
@pytest.mark.parametrize("dtype", ["int4_clip", "nf4", "int8"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_it_is_numpys_norm(shape, dtype, double_quant):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scheme = woqfx.Scheme(dtype, double_quant=double_quant)
    q = woqfx.quantize_nearest(weight, woqfx.registry().dtype(dtype), scheme, name="w")
    exact, stored = weight.double().numpy(), q.dequantize().double().numpy()
    expected = np.linalg.norm((exact - stored).ravel()) / np.linalg.norm(exact.ravel())
    assert relative_error(weight, q) == pytest.approx(expected, rel=2e-5, abs=1e-7)


def test_a_weight_of_zeros_has_no_error():
    weight = torch.zeros(4, 32)
    q = woqfx.quantize_nearest(weight, woqfx.registry().dtype("nf4"), woqfx.Scheme("nf4"), name="w")
    assert relative_error(weight, q) == 0.0


def test_it_does_not_depend_on_the_number_of_threads():
    weight = torch.randn(2000, 1000, generator=torch.Generator().manual_seed(0))
    q = woqfx.quantize_nearest(weight, woqfx.registry().dtype("nf4"), woqfx.Scheme("nf4"), name="w")
    before = torch.get_num_threads()
    found = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.add(relative_error(weight, q))
    torch.set_num_threads(before)
    assert len(found) == 1
