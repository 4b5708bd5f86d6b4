"""`QTensor`: its parts, its views, and what it refuses from a file."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from woqfx import Codebook, GroupParams, IntegerGrid, QTensor, Scheme, quantize_nearest
from woqfx.errors import CheckpointError
from woqfx.testing.cases import with_offsets


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
    "offsets": (Grid(), Scheme("grid3", symmetric=False, scale_dtype="bf16")),
    "double-offsets": (Grid(), Scheme("grid3", group_size=16, symmetric=False, double_quant=True)),
}


def make(case: str, *shape: int) -> QTensor:
    dtype, scheme = SCHEMES[case]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    q = quantize_nearest(weight, dtype, scheme, name="w")
    return with_offsets(q) if "offsets" in case else q


@pytest.mark.parametrize("shape", [(4, 70), (3, 4, 70), (2, 3, 4, 70)], ids=str)
@pytest.mark.parametrize("case", SCHEMES)
class TestParts:
    def test_specs_describe_the_tensors(self, case, shape):
        q = make(case, *shape)
        specs = QTensor.specs(q.dtype, q.scheme, q.shape, offsets="offsets" in case)
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


def test_offsets_by_hand():
    codes = torch.tensor([[0, 4, 7, 3, 5]], dtype=torch.uint8)
    params = GroupParams(torch.tensor([[2.0, 0.5]]), offset=torch.tensor([[-8.5, 3.0]]))
    q = QTensor.build(Grid(), Scheme("grid3", group_size=3, symmetric=False), codes, params)
    assert q.dequantize().tolist() == [[-8.5, -0.5, 5.5, 4.5, 5.5]]
    first = GroupParams(params.scale[:, 0], None, params.offset[:, 0])
    assert Grid().decode(codes[:, :3], first).tolist() == [[-8.5, -0.5, 5.5]]
    assert Grid().encode(q.dequantize()[:, :3], first).tolist() == [[0, 4, 7]]
    assert (Grid().integers(codes[:, :3], first)[0]).tolist() == [[0, 4, 7]]


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1"])
def test_offsets_are_what_gguf_means_by_a_minimum(kind):
    """The weights of GGUF's Q4_1 and Q5_1 blocks, as its own package decodes them: every bit."""
    gguf = pytest.importorskip("gguf")
    source = np.random.default_rng(0).standard_normal((6, 96), np.float32)
    blocks = gguf.quants.quantize(source, gguf.GGMLQuantizationType[kind])
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    bits, records = int(kind[1]), blocks.reshape(6, 3, -1)
    scale, minimum = (torch.from_numpy(records[..., i : i + 2].copy().view(np.float16)[..., 0]) for i in (0, 2))
    nibbles = records[..., -16:]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], -1)
    if bits == 5:
        high = np.unpackbits(records[..., 4:8], axis=-1, bitorder="little")
        codes |= high << 4
    grid = type("Grid", (IntegerGrid,), {"name": kind, "bits": bits})()
    params = GroupParams(scale.float(), offset=minimum.float())
    q = QTensor.build(grid, Scheme(kind, symmetric=False), torch.from_numpy(codes.reshape(6, 96)), params)
    assert q.dequantize().numpy().tobytes() == expected.tobytes()


def test_order_puts_inputs_back():
    q = make("sym", 4, 70)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1)).to(torch.int32)
    ordered = dataclasses.replace(q, order=order)
    plain, moved = q.dequantize(), ordered.dequantize()
    assert all(torch.equal(moved[:, order[j]], plain[:, j]) for j in range(70))


def test_each_weight_of_a_stack_has_its_own_order():
    orders = [torch.randperm(70, generator=torch.Generator().manual_seed(seed)).to(torch.int32) for seed in (1, 2)]
    alone = [dataclasses.replace(make("asym", 4, 70), order=order) for order in orders]
    q = QTensor.stack(alone, alone[0].scheme)
    assert {k: (v.dtype, tuple(v.shape)) for k, v in q.tensors().items()} == QTensor.specs(
        q.dtype, q.scheme, (2, 4, 70), ordered=True
    )
    for number, one in enumerate(alone):
        assert torch.equal(q.dequantize()[number], one.dequantize())
        assert torch.equal(q[number].dequantize(), one.dequantize())
        assert torch.equal(q.matrices()[number].dequantize(), one.dequantize())


@pytest.mark.parametrize("shape", [(4, 70), (3, 4, 70)], ids=str)
def test_an_order_can_be_that_in_which_inputs_come(shape):
    q = make("sym", *shape).ordered()
    assert torch.equal(q.dequantize(), make("sym", *shape).dequantize())
    assert q.ordered() is q
    assert q.order.shape == (*shape[:-2], 70)
    QTensor.from_tensors(q.dtype, q.scheme, q.shape, q.tensors(), name="w")


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

    def test_matrices(self, case):
        q = make(case, 2, 3, 4, 70)
        found = torch.stack([one.dequantize() for one in q.matrices()])
        assert torch.equal(found, q.dequantize().view(6, 4, 70))
        assert [one.shape for one in make(case, 4, 70).matrices()] == [(4, 70)]


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

    @pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
    def test_offsets_that_are_not_finite(self, value):
        offsets = torch.full((4, 3), value, dtype=torch.bfloat16)
        self.refuse(make("offsets", 4, 70), "an offset is not finite", offsets=offsets)

    def test_offsets_where_there_is_no_place_for_them(self):
        offsets = torch.zeros(4, 3, dtype=torch.bfloat16)
        self.refuse(make("asym", 4, 70), "holds .*offsets.* where its scheme needs", offsets=offsets)
        self.refuse(make("sym", 4, 70), "holds .*offsets.* where its scheme needs", offsets=offsets.half())
        q = make("codebook", 4, 70)
        scheme = dataclasses.replace(q.scheme, symmetric=False)
        self.refuse(dataclasses.replace(q, scheme=scheme), "is a codebook", offsets=offsets.half())

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
