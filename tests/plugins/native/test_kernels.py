"""The kernels' numbers, against float64, on every instruction set of this machine; and that rows are independent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from woqfx.packing import pack
from woqfx_native import _core

ISAS = [isa for isa in _core.Isa if _core.supported(isa)]
COMPUTES = ("fp32", "bf16", "int8")
FLOATS = {torch.float32: _core.Float.f32, torch.float16: _core.Float.f16, torch.bfloat16: _core.Float.bf16}


@dataclass(frozen=True)
class Case:
    """A weight in plain parts, made of random codes: kernels must not care whether a quantizer would write them."""

    codes: Tensor
    scales: Tensor
    group: int
    bits: int
    zeros: Tensor | None
    offsets: Tensor | None
    levels: Tensor | None
    order: Tensor | None

    @classmethod
    def random(
        cls, n: int, k: int, group: int, bits: int, kind: str = "symmetric", scale_type: torch.dtype = torch.float16,
        ordered: bool = False, seed: int = 0,
    ) -> Case:  # fmt: skip
        rng = torch.Generator().manual_seed(seed)
        groups, top = -(-k // group), 1 << bits
        levels = torch.randn(top, generator=rng) + 0.1 if kind == "codebook" else None
        zeros = torch.randint(0, top, (n, groups), generator=rng, dtype=torch.uint8) if kind == "asymmetric" else None
        offsets = (torch.randn(n, groups, generator=rng) * 0.03 * top).to(scale_type) if kind == "offsets" else None
        return cls(
            torch.randint(0, top, (n, k), generator=rng, dtype=torch.uint8),
            (torch.rand(n, groups, generator=rng) * 0.1 + 0.01).to(scale_type),
            group,
            bits,
            zeros,
            offsets,
            levels,
            torch.randperm(k, generator=rng).to(torch.int32) if ordered else None,
        )

    def pack(self, threads: int = 1) -> _core.PackedWeight:
        codes, k = pack(self.codes, self.bits), self.codes.shape[1]
        parts = [(codes, self.scales, self.zeros, self.offsets)]
        return _core.pack(parts, k, self.group, self.bits, self.levels, self.order, threads)

    def spread(self, per_group: Tensor) -> Tensor:
        """[N, G] to float64 [N, K]."""
        return per_group.double().repeat_interleave(self.group, 1)[:, : self.codes.shape[1]]

    def values(self) -> Tensor:
        """What codes stand for, without scales: float64 [N, K]."""
        if self.levels is not None:
            return self.levels[self.codes.long()].double()
        if self.offsets is not None:
            return self.codes.double()
        return self.codes.double() - (1 << self.bits - 1 if self.zeros is None else self.spread(self.zeros))

    def shift(self) -> Tensor:
        """What is added to scaled values: float64 [N, K]."""
        return torch.zeros(()).double() if self.offsets is None else self.spread(self.offsets)


def run(
    weight: _core.PackedWeight, x: Tensor, compute: str, isa: _core.Isa | None = None, *,
    bias: Tensor | None = None, threads: int = 1, outliers: float = 0.0,
) -> Tensor:  # fmt: skip
    y = x.new_full((len(x), weight.n), float("nan"))
    at = 0 if bias is None else bias.data_ptr()
    _core.linear(
        weight, x.data_ptr(), FLOATS[x.dtype], len(x), x.stride(0), y.data_ptr(), at, _core.Float.f32,
        _core.Compute[compute], outliers, threads, isa,
    )  # fmt: skip
    return y


def expected(case: Case, x: Tensor, compute: str, outliers: float = 0.0) -> tuple[Tensor, Tensor]:
    """`x @ W.T` as the compute dtype defines it, in float64; and the sum of all magnitudes, which errors scale with."""
    x = x if case.order is None else x[:, case.order.long()]
    values, scales = case.values(), case.spread(case.scales)
    offset = 0 if case.zeros is None else (case.spread(case.zeros) - (1 << case.bits - 1)).abs()
    shift = case.shift()
    magnitude = x.double().abs() @ ((values.abs() + offset) * scales + shift.abs()).T
    if compute == "fp32":
        return x.double() @ (values * scales + shift).T, magnitude
    if compute == "bf16":
        return x.bfloat16().double() @ (values.bfloat16().double() * scales + shift).T, magnitude
    large = x.abs() >= outliers if outliers else torch.zeros_like(x, dtype=torch.bool)
    inside, integers = x.masked_fill(large, 0), values
    result = x.masked_fill(~large, 0).double() @ (values * scales + shift).T
    if case.levels is not None:
        reach = float(case.levels.abs().max())
        integers = (case.levels * (127 / reach)).round()[case.codes.long()].double()
        scales = scales * (reach / 127)
    for start in range(0, x.shape[1], case.group):
        columns = slice(start, start + case.group)
        amax = inside[:, columns].abs().amax(1, keepdim=True)
        step = torch.where(amax > 0, amax / 127, 1.0)
        steps = (inside[:, columns] / step).round().double()
        result += (steps @ integers[:, columns].T) * step.double() * scales[:, start]
        if case.offsets is not None:
            result += steps.sum(1, keepdim=True) * step.double() * shift[:, start]
    return result, magnitude + (x.double().abs().amax(1, keepdim=True) * (integers.abs() * scales).sum(1))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(["symmetric", "asymmetric", "offsets", "codebook"]))
    k = draw(st.integers(1, 700))
    return Case.random(
        n=draw(st.integers(1, 100)),
        k=k,
        group=draw(st.one_of(st.just(k), st.integers(1, k))),
        bits=draw(st.integers(1, 4 if kind == "codebook" else 8)),
        kind=kind,
        scale_type=draw(st.sampled_from(list(FLOATS))),
        ordered=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


@pytest.mark.parametrize("compute", COMPUTES)
@settings(deadline=None, max_examples=40)
@given(case=cases(), rows=st.integers(1, 30), outliers=st.sampled_from([0.0, 1.5]))
def test_products_agree_with_float64(compute, case, rows, outliers):
    outliers = outliers if compute == "int8" else 0.0
    x = torch.randn(rows, case.codes.shape[1], generator=torch.Generator().manual_seed(rows))
    bias = torch.linspace(-1, 1, len(case.codes))
    exact, magnitude = expected(case, x, compute, outliers)
    weight = case.pack()
    for isa in ISAS:
        y = run(weight, x, compute, isa, bias=bias, outliers=outliers)
        assert bool(((y - (exact + bias)).abs() <= 1e-6 * (magnitude + 1)).all()), isa


@pytest.mark.parametrize("isa", ISAS, ids=[isa.name for isa in ISAS])
@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize(
    "case",
    [
        Case.random(200, 256, 32, 4),
        Case.random(70, 333, 100, 4, "asymmetric", ordered=True),
        Case.random(70, 333, 100, 4, "offsets", ordered=True),
        Case.random(96, 1100, 1100, 4, "codebook"),
        Case.random(33, 640, 128, 8, "asymmetric"),
        Case.random(64, 1536, 768, 8),
    ],
    ids=[
        "int4",
        "int4-asymmetric-ordered",
        "int4-offsets-ordered",
        "codebook-per-row",
        "int8-asymmetric",
        "int8-long-groups",
    ],
)
def test_a_row_depends_on_nothing_but_itself(case, compute, isa):
    weight, x = case.pack(), torch.randn(70, case.codes.shape[1], generator=torch.Generator().manual_seed(1))
    alone = torch.cat([run(weight, row[None], compute, isa) for row in x])
    for rows in (2, 3, 5, 8, 9, 16, 25, 70):
        for threads in (1, 2, 3):
            assert torch.equal(run(weight, x[:rows], compute, isa, threads=threads), alone[:rows]), (rows, threads)


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "offsets"])
def test_fp32_is_as_exact_as_fp32_is(kind):
    case = Case.random(256, 4096, 128, 4, kind)
    x = torch.randn(16, 4096, generator=torch.Generator().manual_seed(2))
    exact, _ = expected(case, x, "fp32")
    assert float((run(case.pack(), x, "fp32") - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_half_floats_are_read_exactly_and_written_rounded(kind, compute):
    weight, x = Case.random(50, 96, 32, 4).pack(), torch.randn(20, 96).to(kind)
    assert torch.equal(run(weight, x, compute), run(weight, x.float(), compute).to(kind))


def test_every_half_float_is_read_and_written_as_torch_does():
    one = Case(torch.tensor([[9]], dtype=torch.uint8), torch.ones(1, 1), 1, 4, None, None, None, None).pack()  # 1
    every = torch.from_numpy(np.arange(1 << 16, dtype=np.uint16).view(np.int16))
    for kind in (torch.float16, torch.bfloat16):
        x = every.view(kind)[:, None]
        y = run(one, x, "fp32")
        finite = x.isfinite()
        assert torch.equal(y[finite], x[finite] + 0) and not bool(y[~finite].isfinite().any())


def test_rows_may_lie_apart():
    weight, x = Case.random(50, 96, 32, 4).pack(), torch.randn(20, 100)
    assert torch.equal(run(weight, x[:, :96], "fp32"), run(weight, x[:, :96].contiguous(), "fp32"))


@pytest.mark.parametrize("isa", ISAS, ids=[isa.name for isa in ISAS])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_spoils_its_row_only(value, isa):
    weight, x = Case.random(50, 96, 32, 4).pack(), torch.randn(3, 96)
    clean = run(weight, x, "int8", isa)
    x[1, 40] = value
    y = run(weight, x, "int8", isa)
    assert torch.equal(y[[0, 2]], clean[[0, 2]]) and bool(y[1].isnan().all())


def test_packing_does_not_depend_on_threads():
    case = Case.random(300, 520, 40, 4, "asymmetric", ordered=True)
    one, three = (torch.from_dlpack(case.pack(threads).bytes()) for threads in (1, 3))
    assert torch.equal(one, three)


@pytest.mark.parametrize("levels", [[0.0, 0.0], [1.0, float("inf")], [1.0]], ids=["zeros", "infinite", "one"])
def test_impossible_codebooks_are_refused(levels):
    case = Case.random(4, 16, 16, 1)
    with pytest.raises(_core.Error, match="codebook"):
        Case(case.codes, case.scales, 16, 1, None, None, torch.tensor(levels), None).pack()


def test_a_long_group_that_cannot_be_cut_is_refused():
    with pytest.raises(_core.Error, match="group size 70001"):
        Case.random(1, 140_002, 70_001, 4).pack()
