"""The two families of grids, on small cases that can be checked by hand. Laws: testing/test_dtype_suite.py."""

from __future__ import annotations

import math

import pytest
import torch

from woqfx import Codebook, GroupParams, IntegerGrid
from woqfx.dtype import scale_storage


class Clip3(IntegerGrid):
    name, bits = "clip3", 3


class Full3(IntegerGrid):
    name, bits, full_range = "full3", 3, True


class Shuffled(Codebook):
    """Out of order, with a duplicate, and lopsided: the largest magnitude is negative."""

    name, bits, table = "shuffled", 3, (1.0, -4.0, 0.0, 2.0, -0.0, 1.0)


class TestIntegerGrid:
    def test_clip_by_hand(self):
        groups = torch.tensor([[-3.0, -1.6, 0.4, 1.5, 2.5, 3.0]])
        params = Clip3().fit(groups, symmetric=True)
        assert params.scale.tolist() == [1.0] and params.zero is None
        codes = Clip3().encode(groups, params)
        assert codes.tolist() == [[1, 2, 4, 6, 6, 7]]  # half to even
        assert Clip3().decode(codes, params).tolist() == [[-3, -2, 0, 2, 2, 3]]

    @pytest.mark.parametrize("sign", [1, -1])
    def test_full_range_by_hand(self, sign):
        groups = torch.tensor([[4.0, -3.0, 2.0, 0.0]]) * sign
        params = Full3().fit(groups, symmetric=True)
        assert params.scale.tolist() == [-1.0 * sign]
        assert Full3().encode(groups, params).tolist() == [[0, 7, 2, 4]]

    def test_asymmetric_by_hand(self):
        groups = torch.tensor([[-2.0, 0.0, 1.0, 5.0], [1.0, 2.0, 3.0, 7.0], [-7.0, -1.0, -1.0, -1.0]])
        params = Clip3().fit(groups, symmetric=False)
        assert params.scale.tolist() == [1.0, 1.0, 1.0]
        assert params.zero is not None and params.zero.tolist() == [2.0, 0.0, 7.0]
        assert Clip3().encode(groups, params).tolist() == [[0, 2, 3, 7], [1, 2, 3, 7], [0, 6, 6, 6]]
        assert torch.equal(Clip3().decode(Clip3().encode(groups, params), params), groups)

    def test_shrink_clips(self):
        groups = torch.tensor([[-6.0, 1.0, 6.0]])
        params = Clip3().fit(groups, symmetric=True, shrink=0.5)
        assert params.scale.tolist() == [1.0]
        assert Clip3().decode(Clip3().encode(groups, params), params).tolist() == [[-4.0, 1.0, 3.0]]

    def test_integers(self):
        params = GroupParams(torch.tensor([0.5]), torch.tensor([3.0]))
        whole, scale = Clip3().integers(torch.tensor([[0, 3, 7]], dtype=torch.uint8), params)
        assert whole.tolist() == [[-3.0, 0.0, 4.0]] and scale.tolist() == [0.5]

    def test_there_is_no_table(self):
        assert Clip3().levels is None


class TestCodebook:
    def test_by_hand(self):
        groups = torch.tensor([[8.0, 4.0, 1.0, 0.9, -0.1, -3.9, -4.1, -8.0]])
        params = Shuffled().fit(groups, symmetric=True)
        assert params.scale.tolist() == [2.0]
        codes = Shuffled().encode(groups, params)
        # Levels times 2: -8, 0, 2, 4. Code 0 and not 5 for 2; code 2 and not 4 for 0. Halfway (1, -4): the lower.
        assert codes.tolist() == [[3, 3, 2, 2, 2, 2, 1, 1]]
        assert Shuffled().decode(codes, params).tolist() == [[4, 4, 0, 0, 0, 0, -8, -8]]

    def test_integers_are_the_levels_in_int8(self):
        params = GroupParams(torch.tensor([2.0]))
        whole, scale = Shuffled().integers(torch.arange(6, dtype=torch.uint8).view(1, 6), params)
        assert whole.tolist() == [[32, -127, 0, 64, 0, 32]]  # 127 * level / 4, half to even
        assert scale.tolist() == pytest.approx([2.0 * 4 / 127])

    def test_it_has_no_asymmetric_form(self):
        with pytest.raises(ValueError, match="shuffled is a codebook"):
            Shuffled().fit(torch.ones(1, 4), symmetric=False)


@pytest.mark.parametrize("grid", [Clip3(), Full3(), Shuffled()], ids=lambda grid: grid.name)
class TestEdges:
    def test_zeros_have_scale_one(self, grid):
        for symmetric in (True, False) if grid.has_asymmetric else (True,):
            params = grid.fit(torch.zeros(2, 5), symmetric=symmetric)
            assert params.scale.tolist() == [1.0, 1.0]
            assert not grid.decode(grid.encode(torch.zeros(2, 5), params), params).any()

    @pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-38, 1e38, 3e38])
    def test_extreme_sizes_stay_finite(self, grid, size):
        groups = torch.tensor([[size, -size, 0.0]])
        for symmetric in (True, False) if grid.has_asymmetric else (True,):
            params = grid.fit(groups, symmetric=symmetric)
            if math.isinf(size - -size) or not torch.isfinite(params.scale).all():
                continue  # max - min overflows: `woqfx.nearest` reports it
            decoded = grid.decode(grid.encode(groups, params), params)
            assert torch.isfinite(decoded).all()
            assert (decoded - groups).abs().max() <= max(size, 1.2e-38)

    def test_repr(self, grid):
        assert repr(grid) == f"<dtype {grid.name}: 3 bits>"


class TestStoredAs:
    @pytest.mark.parametrize(("name", "type_"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
    def test_scales_are_rounded_to_what_is_stored(self, name, type_):
        scale = torch.tensor([0.1, -3.3, 1000.1])
        stored = GroupParams(scale, torch.tensor([1.0, 2.0, 3.0])).stored_as(name)
        assert torch.equal(stored.scale, scale.to(type_).float())
        assert stored.zero is not None and stored.zero.tolist() == [1, 2, 3]
        assert scale_storage(name) is type_

    def test_fp32_is_left_alone(self):
        params = GroupParams(torch.tensor([1e-30]))
        assert params.stored_as("fp32") is params

    def test_a_scale_too_small_is_raised_with_its_sign(self):
        stored = GroupParams(torch.tensor([1e-9, -1e-9, 1.0])).stored_as("fp16")
        assert stored.scale.tolist() == [2**-14, -(2**-14), 1.0]

    def test_a_scale_too_large_becomes_infinite(self):
        assert GroupParams(torch.tensor([1e6])).stored_as("fp16").scale.tolist() == [math.inf]
