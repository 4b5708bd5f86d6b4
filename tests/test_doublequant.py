"""Double quantization by its definition; against bitsandbytes itself: plugins/test_bitsandbytes.py."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from woqfx.doublequant import compress, dynamic_map


def test_the_map_by_its_definition():
    """arXiv 1511.04561: a sign, a decade counted by leading zeros, and even steps of what bits are left."""
    values = dynamic_map().tolist()
    assert len(values) == 256 and values == sorted(set(values))
    assert values[-1] == 1 and 0.0 in values
    for decade in range(7):
        inside = [v for v in values if 0.1 * 10 ** (decade - 6) < v < 10 ** (decade - 6)]
        assert len(inside) == 2**decade
        steps = [b - a for a, b in itertools.pairwise(inside)]
        assert steps == pytest.approx([0.9 * 10 ** (decade - 6) / 2**decade] * len(steps), rel=1e-3)
        assert all(-v in values for v in inside)


@given(st.lists(st.floats(2**-20, 2**10, width=32), min_size=1, max_size=600))
def test_no_scale_is_farther_than_the_widest_gap(values):
    scales = torch.tensor(values)
    stored = compress(scales)
    assert stored.codes.dtype == torch.uint8 and stored.codes.shape == scales.shape
    assert stored.ranges.shape == (-(-len(values) // 256),)
    widest = float((dynamic_map()[1:] - dynamic_map()[:-1]).max())
    gap = stored.ranges.repeat_interleave(256)[: len(values)] * widest / 2
    assert torch.all((stored.expand() - scales).abs() <= gap * 1.0001 + float(scales.max()) * 1e-6)


@pytest.mark.parametrize("shape", [(1,), (5, 7), (3, 100), (2, 3, 50)], ids=str)
def test_the_shape_of_the_scales_is_kept(shape):
    scales = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1
    assert compress(scales).expand().shape == shape
    assert torch.equal(compress(scales).expand().flatten(), compress(scales.flatten()).expand())


@pytest.mark.parametrize("count", [1, 255, 256, 257])
def test_equal_scales_are_exact(count):
    assert torch.equal(compress(torch.full((count,), 0.375)).expand(), torch.full((count,), 0.375))


def test_threads_do_not_matter():
    scales = torch.rand(300_000, generator=torch.Generator().manual_seed(0))
    before, made = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made.append(compress(scales))
    torch.set_num_threads(before)
    assert torch.equal(made[0].codes, made[1].codes)
    assert torch.equal(made[0].offset, made[1].offset)
