"""`QTensor`: its parts, its views, and what it refuses from a file."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from woqfx import Codebook, GroupParams, IntegerGrid, QTensor, Scheme, quantize_nearest
from woqfx.errors import CheckpointError


class Grid(IntegerGrid):
    name, bits = "grid3", 3


class Book(Codebook):
    """Five levels in three bits: codes 5 to 7 mean nothing."""

    name, bits, table = "book3", 3, (-1.0, -0.4, 0.0, 0.4, 1.0)


SCHEMES = {
    "sym": (Grid(), Scheme("grid3")),
    "asym": (Grid(), Scheme("grid3", symmetric=False, scale_dtype="bf16")),
    "per-row": (Grid(), Scheme("grid3", group_size=-1, scale_dtype="fp32")),
    "codebook": (Book(), Scheme("book3", group_size=24)),
    "double": (Book(), Scheme("book3", group_size=16, double_quant=True)),
    "double-asym": (Grid(), Scheme("grid3", group_size=16, symmetric=False, double_quant=True)),
}


def make(case: str, *shape: int) -> QTensor:
    dtype, scheme = SCHEMES[case]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return quantize_nearest(weight, dtype, scheme, name="w")


@pytest.mark.parametrize("shape", [(4, 70), (3, 4, 70), (2, 3, 4, 70)], ids=str)
@pytest.mark.parametrize("case", SCHEMES)
class TestParts:
    def test_specs_describe_the_tensors(self, case, shape):
        q = make(case, *shape)
        specs = QTensor.specs(q.dtype, q.scheme, q.shape)
        assert {key: (part.dtype, tuple(part.shape)) for key, part in q.tensors().items()} == specs
        assert list(q.tensors()) == list(specs)

    def test_from_tensors(self, case, shape):
        q = make(case, *shape)
        again = QTensor.from_tensors(q.dtype, q.scheme, q.shape, q.tensors(), name="w")
        assert torch.equal(again.dequantize(), q.dequantize())
        assert all(torch.equal(a, b) for a, b in zip(again.tensors().values(), q.tensors().values(), strict=True))

    def test_nbytes(self, case, shape):
        q = make(case, *shape)
        assert q.nbytes == sum(part.numel() * part.element_size() for part in q.tensors().values())


def test_dequantize_by_hand():
    codes = torch.tensor([[0, 4, 7, 3, 5]], dtype=torch.uint8)
    params = GroupParams(torch.tensor([[2.0, 0.5]]), torch.tensor([[4.0, 3.0]]))
    q = QTensor.build(Grid(), Scheme("grid3", group_size=3, symmetric=False), codes, params)
    assert q.dequantize().tolist() == [[-8.0, 0.0, 6.0, 0.0, 1.0]]
    assert (q.out_features, q.in_features) == (1, 5)


def test_order_puts_inputs_back():
    q = make("sym", 4, 70)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1)).to(torch.int32)
    ordered = dataclasses.replace(q, order=order)
    plain, moved = q.dequantize(), ordered.dequantize()
    assert all(torch.equal(moved[:, order[j]], plain[:, j]) for j in range(70))


@pytest.mark.parametrize("case", SCHEMES)
class TestViews:
    def test_one_of_a_stack(self, case):
        q = make(case, 3, 4, 70)
        for index in range(3):
            assert torch.equal(q[index].dequantize(), q.dequantize()[index])
        with pytest.raises(IndexError, match="not a stack"):
            q[0][0]

    def test_rows(self, case):
        q = make(case, 6, 70)
        index = torch.tensor([5, 0, 0, 3])
        assert torch.equal(q.rows(index).dequantize(), q.dequantize()[index])
        assert torch.equal(q.rows(slice(1, 4)).dequantize(), q.dequantize()[1:4])

    def test_flattened(self, case):
        q = make(case, 3, 4, 70)
        assert torch.equal(q.flattened().dequantize(), q.dequantize().view(12, 70))


class TestHostileParts:
    def refuse(self, q: QTensor, message: str, **changes: torch.Tensor | None) -> None:
        parts = {key: part for key, part in {**q.tensors(), **changes}.items() if part is not None}
        with pytest.raises(CheckpointError, match=message):
            QTensor.from_tensors(q.dtype, q.scheme, q.shape, parts, name="layer.w")

    def test_missing_and_foreign_parts(self):
        self.refuse(make("sym", 4, 70), r"layer\.w: holds \['codes'\], where its scheme needs", scales=None)
        self.refuse(make("sym", 4, 70), "holds .*zeros", zeros=torch.zeros(4, 3, dtype=torch.uint8))

    @pytest.mark.parametrize(
        ("suffix", "part"),
        [
            ("codes", torch.zeros(4, 26, dtype=torch.uint8)),
            ("codes", torch.zeros(4, 27, dtype=torch.int8)),
            ("scales", torch.ones(4, 4, dtype=torch.float16)),
            ("scales", torch.ones(4, 3, dtype=torch.float32)),
            ("scales", torch.ones(3, dtype=torch.float16)),
        ],
        ids=["width", "type", "groups", "scale-type", "scale-shape"],
    )
    def test_wrong_shapes_and_types(self, suffix, part):
        self.refuse(make("sym", 4, 70), rf"layer\.w\.{suffix} is torch\.", **{suffix: part})

    @pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
    def test_scales_that_are_not_finite(self, value):
        self.refuse(make("sym", 4, 70), "a scale is not finite", scales=torch.full((4, 3), value, dtype=torch.float16))
        self.refuse(make("double", 4, 70), "a scale is not finite", scale_offset=torch.tensor(value))

    def test_zeros_beyond_the_bits(self):
        zeros = torch.full((4, 3), 8, dtype=torch.uint8)
        self.refuse(make("asym", 4, 70), "zero point is outside the 3-bit range", zeros=zeros)

    def test_codes_beyond_the_levels(self):
        q = make("codebook", 4, 70)
        codes = q.codes.clone()
        codes[2, 3] = 0xFF
        self.refuse(q, "a code is outside the 5 levels of book3", codes=codes)

    @pytest.mark.parametrize(
        "bad", [[0] * 70, [*range(69), 70], [*range(1, 70), -1]], ids=["twice", "beyond", "negative"]
    )
    def test_an_order_that_is_no_permutation(self, bad):
        order = torch.tensor(bad, dtype=torch.int32)
        self.refuse(make("sym", 4, 70), "not a permutation of 70 inputs", order=order)


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make("sym", 4, 70).codes = torch.zeros(1)
