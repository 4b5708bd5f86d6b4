"""`all_finite` says what PyTorch's `isfinite` says."""

from __future__ import annotations

import pytest
import torch

from woqfx.finite import all_finite

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_every_number_of_16_bits(kind):
    numbers = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(kind)
    assert [all_finite(number) for number in numbers[::7]] == torch.isfinite(numbers[::7]).tolist()


@pytest.mark.parametrize("kind", FLOATS, ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("place", [0, 262_143, 262_144, -1])
def test_one_among_many(kind, value, place):
    numbers = torch.full((600_001,), torch.finfo(kind).max, dtype=kind)
    assert all_finite(numbers) and all_finite(-numbers)
    numbers[place] = value
    assert not all_finite(numbers)


def test_any_shape_and_stride():
    numbers = torch.ones(6, 4, 4)
    numbers[2, 1, 3] = float("nan")
    assert not all_finite(numbers.transpose(0, 2)) and all_finite(numbers[3:].T)
    assert all_finite(torch.ones(())) and all_finite(torch.ones(0))
