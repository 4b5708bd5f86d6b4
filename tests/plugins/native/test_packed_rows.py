"""Weights that are packed as one are, byte for byte, the weight of their rows one after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from woqfx import QTensor, Scheme, quantize_nearest, registry

_core = pytest.importorskip("woqfx_native._core")
packed = pytest.importorskip("woqfx_native.packed")


def weights_of(rows: list[int], inputs: int, scheme: Scheme) -> list[QTensor]:
    generator = torch.Generator().manual_seed(sum(rows) + inputs)
    dtype = registry().dtype(scheme.dtype)
    return [
        quantize_nearest(torch.randn(count, inputs, generator=generator), dtype, scheme, name="some") for count in rows
    ]


def together(weights: list[QTensor]) -> QTensor:
    """The reference: rows joined as tensors."""
    tensors = [weight.tensors() for weight in weights]
    parts = {suffix: torch.cat([own[suffix] for own in tensors]) for suffix in tensors[0]}
    shape = (sum(weight.shape[0] for weight in weights), weights[0].in_features)
    return QTensor.of_parts(weights[0].dtype, weights[0].scheme, shape, parts)


SCHEMES = {
    "int4": Scheme("int4_clip", group_size=32),
    "int4 with zeros": Scheme("int4_clip", group_size=32, symmetric=False),
    "int4, scales of fp32": Scheme("int4_clip", group_size=64, scale_dtype="fp32"),
    "int4, groups across words": Scheme("int4_clip", group_size=20),
    "nf4, one group": Scheme("nf4", group_size=-1, scale_dtype="bf16"),
    "int8": Scheme("int8", group_size=32),
}


@pytest.mark.parametrize("inputs", [256, 136, 250, 7], ids=lambda k: f"k{k}")
@pytest.mark.parametrize("rows", [[64, 32, 32], [32, 1, 70], [3, 2], [33]], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_rows_of_several_weights(scheme: Scheme, rows: list[int], inputs: int):
    weights = weights_of(rows, inputs, scheme)
    whole = together(weights)
    joined = packed.pack_joined(weights)
    assert torch.equal(joined, packed.pack(whole))
    back = packed.unpack(joined, whole.dtype, scheme, whole.shape, ordered=False, offsets=False)
    assert torch.equal(back["codes"], whole.codes)
    assert torch.equal(back["scales"], whole.tensors()["scales"])


def test_one_scale_that_needs_float32_decides_for_all():
    first, second = weights_of([32, 32], 64, Scheme("int4_clip", group_size=32, scale_dtype="fp32"))
    halves = first.scales.half().float()
    first = QTensor.of_parts(first.dtype, first.scheme, first.shape, {**first.tensors(), "scales": halves})
    back = packed.unpack(
        packed.pack_joined([first, second]), first.dtype, first.scheme, (64, 64), ordered=False, offsets=False
    )
    assert torch.equal(back["scales"], torch.cat([halves, second.scales]))


def test_scales_are_held_in_the_smallest_type_that_is_exact():
    (single,) = weights_of([64], 256, Scheme("int4_clip", group_size=16, scale_dtype="fp32"))

    def size(scales: torch.Tensor) -> int:
        return len(packed.pack(replace(single, scales=scales)))

    tile_scales = 256 // 16 * 32  # two tiles of 32 rows
    halves, brains = single.scales.half().float(), single.scales.bfloat16().float()
    assert size(halves) == size(brains) == size(single.scales) - 2 * tile_scales * 2


@pytest.mark.parametrize("zero", [0, 2], ids=["the first", "the last"])
def test_a_stack_has_one_type_of_scales(zero: int):
    scheme = Scheme("int4_clip", group_size=32, scale_dtype="fp32")
    weight = torch.randn(3, 32, 64, generator=torch.Generator().manual_seed(0))
    stack = quantize_nearest(weight, registry().dtype("int4_clip"), scheme, name="experts")
    plain = stack.matrices()
    plain[zero] = replace(plain[zero], scales=torch.ones_like(plain[zero].scales))  # which fit into any type
    mixed = replace(stack, scales=torch.stack([one.scales for one in plain]))
    back = packed.unpack(packed.pack(mixed), mixed.dtype, mixed.scheme, mixed.shape, ordered=False, offsets=False)
    assert torch.equal(back["codes"], mixed.codes) and torch.equal(back["scales"], mixed.scales)
