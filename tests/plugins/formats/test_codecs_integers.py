"""Codes of AWQ and GPTQ against layouts that are written in numpy from their descriptions, and their inverses."""

from __future__ import annotations

import layouts
import numpy as np
import pytest
import torch
from foreign_folders import random_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from woqfx import Scheme
from woqfx.errors import CheckpointError
from woqfx_formats.codecs import awq, gptq
from woqfx_formats.codecs.gptq import ZeroPoints
from woqfx_formats.words import fields, from_transposed_bytes, to_words, transposed_bytes


def tensors(parts):
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in parts.items()}


def assert_same(made, expected):
    assert made.keys() == expected.keys()
    for name, tensor in expected.items():
        assert made[name].dtype == tensor.dtype, name
        assert torch.equal(made[name], tensor), name


class TestWords:
    @given(st.data())
    @settings(max_examples=60, deadline=None)
    def test_fields_are_read_as_they_were_written(self, data):
        bits = data.draw(st.integers(1, 8))
        rows, words = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4)) * bits
        values = data.draw(arrays(np.uint8, (rows, words * 32 // bits), elements=st.integers(0, 2**bits - 1)))
        packed = torch.from_numpy(layouts.words_along(values, bits, 1))
        assert torch.equal(fields(packed, bits), torch.from_numpy(values))
        assert torch.equal(to_words(torch.from_numpy(values), bits), packed)

    @given(arrays(np.int32, st.tuples(st.integers(1, 4), st.integers(1, 5))))
    @settings(max_examples=30, deadline=None)
    def test_transposing_is_undone(self, words):
        packed = torch.from_numpy(words)
        assert torch.equal(from_transposed_bytes(transposed_bytes(packed)), packed)


class TestGPTQ:
    @pytest.mark.parametrize("stored", [ZeroPoints.LESS_ONE, ZeroPoints.PLAIN], ids=["v1", "v2"])
    @pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
    @pytest.mark.parametrize("group_size", [-1, 32, 40])
    @pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
    def test_every_width(self, bits, group_size, symmetric, stored):
        made = random_codes(64, 96, bits=bits, group_size=group_size, symmetric=symmetric)
        minus_one = stored is ZeroPoints.LESS_ONE
        parts = tensors(layouts.gptq(made.codes, made.zeros, made.scales, bits, g_idx=made.groups, minus_one=minus_one))
        weight = gptq.decode(Scheme(gptq.DTYPES[bits], group_size, symmetric), stored, False, parts, "w")
        expected = layouts.weight_of(made.codes, made.zeros, made.scales, made.groups)
        np.testing.assert_array_equal(weight.dequantize().numpy(), expected)
        assert_same(gptq.encode(weight, stored), parts)

    @pytest.mark.parametrize("bits", [2, 4, 8])
    @given(data=st.data())
    @settings(max_examples=30, deadline=None)
    def test_zero_points_less_one_by_whole_words(self, bits, data):
        zeros = data.draw(arrays(np.uint8, (2, 32), elements=st.integers(0, (1 << bits) - 1)))
        made = layouts.gptq(np.zeros((32, 64), np.uint8), zeros.T, np.ones((32, 2)), bits, by_words=True)
        words = torch.from_numpy(made["qzeros"])
        by_words = ZeroPoints.LESS_ONE_BY_WORDS
        assert torch.equal(gptq.zero_points(words, bits, by_words), torch.from_numpy(zeros))
        assert torch.equal(gptq.zero_words(torch.from_numpy(zeros), bits, by_words), words)

    @pytest.mark.parametrize("zeros", [[0] * 8, [15] * 8, [0, 8, 8, 8, 8, 8, 8, 8], [15, 0, 15, 0, 1, 2, 0, 15]])
    def test_a_zero_point_does_not_carry_into_the_next(self, zeros):
        """0 is stored as 15 in version 1; to add 1 to the whole word would add 1 to its neighbour too."""
        stored = torch.from_numpy(layouts.words_along((np.array([zeros]) - 1) % 16, 4, 1))
        assert gptq.zero_points(stored, 4, ZeroPoints.LESS_ONE).tolist() == [zeros]

    @given(st.data())
    @settings(max_examples=40, deadline=None)
    def test_any_order_of_inputs(self, data):
        k, width = 64, data.draw(st.sampled_from([8, 20, 32, 64]))
        groups = np.array(data.draw(st.permutations(list(np.arange(k) // width))))
        made = random_codes(32, k, group_size=width, seed=data.draw(st.integers(0, 9)))
        stored = tensors(layouts.gptq(made.codes, made.zeros, made.scales, 4, g_idx=groups))
        weight = gptq.decode(Scheme("int4_clip", width, symmetric=False), ZeroPoints.LESS_ONE, True, stored, "w")
        expected = layouts.weight_of(made.codes, made.zeros, made.scales, groups)
        np.testing.assert_array_equal(weight.dequantize().numpy(), expected)
        assert_same(gptq.encode(weight, ZeroPoints.LESS_ONE), stored)

    @pytest.mark.parametrize("groups", [[0] * 64, [7] * 64, [-1] * 64, [2**31 - 1] * 64, [0] * 31 + [1] * 33])
    def test_groups_of_other_sizes_are_refused(self, groups):
        made = random_codes(32, 64, group_size=32)
        stored = tensors(layouts.gptq(made.codes, made.zeros, made.scales, 4, g_idx=np.array(groups)))
        with pytest.raises(CheckpointError, match="w: g_idx does not share 64 inputs out to groups of 32"):
            gptq.decode(Scheme("int4_clip", 32, symmetric=False), ZeroPoints.LESS_ONE, True, stored, "w")


class TestAWQ:
    @pytest.mark.parametrize("group_size", [-1, 16, 32, 128])
    def test_gemm(self, group_size):
        made = random_codes(48, 128, group_size=group_size)
        stored = tensors(layouts.awq_gemm(made.codes, made.zeros, made.scales))
        weight = awq.decode_gemm(Scheme("int4_clip", group_size, symmetric=False), stored, "w")
        expected = layouts.weight_of(made.codes, made.zeros, made.scales, made.groups)
        np.testing.assert_array_equal(weight.dequantize().numpy(), expected)
        assert_same(awq.encode_gemm(weight), stored)

    @pytest.mark.parametrize(("k", "group_size"), [(128, 32), (128, 64), (256, 128), (1024, 32), (640, 64)])
    def test_gemv(self, k, group_size):
        made = random_codes(24, k, group_size=group_size)
        stored = tensors(layouts.awq_gemv(made.codes, made.zeros, made.scales, group_size))
        weight = awq.decode_gemv(Scheme("int4_clip", group_size, symmetric=False), stored, "w")
        expected = layouts.weight_of(made.codes, made.zeros, made.scales, made.groups)
        np.testing.assert_array_equal(weight.dequantize().numpy(), expected)

    @pytest.mark.parametrize(("n", "k", "group_size"), [(4, 64, 32), (12, 128, 128), (8, 192, 64)])
    def test_gemv_fast(self, n, k, group_size):
        """Its zeros are rounded after they are scaled, so that w = q s + (-z s) and not (q - z) s."""
        made = random_codes(n, k, group_size=group_size)
        stored = layouts.awq_gemv_fast(made.codes, made.zeros, made.scales, group_size)
        weight = awq.decode_gemv_fast(Scheme("int4_clip", group_size, symmetric=False), tensors(stored), "w")
        scales = made.scales.astype(np.float32)[:, made.groups]
        offsets = stored["qzeros"][: made.zeros.shape[1]].T.astype(np.float32)[:, made.groups]
        np.testing.assert_array_equal(weight.dequantize().numpy(), made.codes.astype(np.float32) * scales + offsets)
