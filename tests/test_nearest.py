"""Rounding to nearest: what it refuses, and what must not change its bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from woqfx import Codebook, GroupParams, IntegerGrid, QTensor, Scheme, quantize_nearest
from woqfx.errors import PluginError, WeightError


class Grid(IntegerGrid):
    name, bits = "grid4", 4


class Book(Codebook):
    name, bits, table = "book2", 2, (-1.0, -0.2, 0.3, 1.0)


CASES = {
    "sym": (Grid(), Scheme("grid4")),
    "asym": (Grid(), Scheme("grid4", symmetric=False)),
    "ragged": (Grid(), Scheme("grid4", group_size=48, symmetric=False)),
    "per-row": (Grid(), Scheme("grid4", group_size=-1)),
    "codebook": (Book(), Scheme("book2", scale_dtype="bf16")),
    "double": (Book(), Scheme("book2", double_quant=True)),
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(a: QTensor, b: QTensor) -> bool:
    mine, theirs = a.tensors(), b.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(part, theirs[key]) for key, part in mine.items())


@pytest.mark.parametrize(("dtype", "scheme"), CASES.values(), ids=CASES)
class TestBytes:
    def test_chunks_do_not_matter(self, dtype, scheme, monkeypatch):
        weight = normal(37, 100)
        whole = quantize_nearest(weight, dtype, scheme, name="w")
        for chunk in (1, 100, 250, 3600):
            monkeypatch.setattr("woqfx.nearest._CHUNK", chunk)
            assert same(quantize_nearest(weight, dtype, scheme, name="w"), whole)

    def test_threads_do_not_matter(self, dtype, scheme):
        weight = normal(300, 2100)
        before, made = torch.get_num_threads(), []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made.append(quantize_nearest(weight, dtype, scheme, name="w"))
        torch.set_num_threads(before)
        assert same(*made)

    def test_a_stack_is_its_weights(self, dtype, scheme):
        weight = normal(2, 3, 5, 100)
        stack = quantize_nearest(weight, dtype, scheme, name="w")
        flat = quantize_nearest(weight.view(30, 100), dtype, scheme, name="w")
        assert stack.shape == (2, 3, 5, 100)
        assert torch.equal(stack.dequantize().view(30, 100), flat.dequantize())

    def test_strides_and_the_input_do_not_matter(self, dtype, scheme):
        weight = normal(100, 37).T
        kept = weight.clone()
        assert same(quantize_nearest(weight, dtype, scheme, name="w"), quantize_nearest(kept, dtype, scheme, name="w"))
        assert torch.equal(weight, kept)

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
    def test_a_short_float_is_the_same_as_its_float32(self, dtype, scheme, kind):
        weight = normal(9, 100).to(kind)
        widened = quantize_nearest(weight.float(), dtype, scheme, name="w")
        assert same(quantize_nearest(weight, dtype, scheme, name="w"), widened)


@pytest.mark.parametrize(("dtype", "scheme"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 99), (6, 47)])
def test_a_bad_weight_is_named_with_its_place(dtype, scheme, value, row, column):
    weight = normal(7, 100)
    weight[row, column] = value
    with pytest.raises(WeightError, match=rf"layers\.1\.w: weight \[{row}, {column}\] is {value}; .*keep this layer"):
        quantize_nearest(weight, dtype, scheme, name="layers.1.w")


def test_the_place_in_a_stack_counts_rows_of_all():
    weight = normal(2, 4, 100)
    weight[1, 2, 5] = float("nan")
    with pytest.raises(WeightError, match=r"\[6, 5\] is nan"):
        quantize_nearest(weight, *CASES["sym"], name="w")


def test_a_scale_beyond_fp16_is_named_with_a_remedy():
    weight = normal(4, 100)
    weight[2, 40] = 1e6
    with pytest.raises(
        WeightError, match=r"row 2, group 1 reaches 1e\+06, a scale that fp16 cannot hold: use .*bf16 or fp32"
    ):
        quantize_nearest(weight, Grid(), Scheme("grid4", scale_dtype="fp16"), name="w")
    for scale_dtype in ("bf16", "fp32"):
        q = quantize_nearest(weight, Grid(), Scheme("grid4", scale_dtype=scale_dtype), name="w")
        assert q.dequantize()[2, 40] == pytest.approx(1e6, rel=0.005)


def test_own_parameters_replace_the_fit():
    weight = torch.tensor([[0.4, 1.0, -2.6, 99.0]])
    q = quantize_nearest(weight, Grid(), Scheme("grid4"), name="w", fit=lambda g: GroupParams(torch.ones(g.shape[:-1])))
    assert q.dequantize().tolist() == [[0.0, 1.0, -3.0, 7.0]]


def test_codes_are_chosen_before_the_scales_are_double_quantized():
    weight = normal(40, 320)
    plain = quantize_nearest(weight, Book(), Scheme("book2", scale_dtype="fp32"), name="w")
    double = quantize_nearest(weight, Book(), Scheme("book2", scale_dtype="fp32", double_quant=True), name="w")
    assert torch.equal(plain.codes, double.codes)
    assert not torch.equal(plain.params().scale, double.params().scale)


def _odd_fit(**changes: object):
    """What the grid's own fit gives, changed."""

    def fit(groups: torch.Tensor) -> GroupParams:
        params = Grid().fit(groups, symmetric=False)
        return replace(params, **{key: change(params) for key, change in changes.items()})

    return fit


@pytest.mark.parametrize(
    ("symmetric", "changes", "says"),
    [
        (
            False,
            {"zero": lambda p: None},
            r"w: fit gave scale \[4, 2\] for groups \[4, 2, 32\], where .* and zero",
        ),
        (False, {"zero": lambda p: None, "offset": lambda p: -p.scale}, r"gave scale \[4, 2\], offset \[4, 2\] for"),
        (True, {}, r"gave scale \[4, 2\], zero \[4, 2\] for .* where a group of symmetric schemes has scale, each"),
        (False, {"scale": lambda p: p.scale[..., None]}, r"gave scale \[4, 2, 1\], zero \[4, 2\]"),
        (False, {"zero": lambda p: p.zero + 0.5}, r"a zero point of \d+\.5: it is the code of 0; round it"),
        (False, {"zero": lambda p: p.zero - 300}, r"a zero point of -\d+"),
    ],
    ids=["no zero", "offsets", "a zero too many", "another shape", "between codes", "below 0"],
)
def test_a_fit_of_another_form_is_refused(symmetric, changes, says):
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    scheme = Scheme("grid4", group_size=32, symmetric=symmetric)
    with pytest.raises(PluginError, match=says):
        quantize_nearest(weight, Grid(), scheme, name="w", fit=_odd_fit(**changes))
