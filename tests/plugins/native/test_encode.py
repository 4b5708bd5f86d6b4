"""The native quantizing against PyTorch's: not one bit may differ, on any instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model

import woqfx
from woqfx import Codebook, DType, GroupParams, IntegerGrid, QTensor, Scheme, quantize_nearest
from woqfx.errors import WeightError
from woqfx.nearest import _fit_by_ratios, round_rows
from woqfx.plugins import registry
from woqfx.quality import square_sums
from woqfx.sums import sum_by_halves

_core = pytest.importorskip("woqfx_native._core", reason="installed without a compiler")
encode = pytest.importorskip("woqfx_native.encode")

#: The instruction sets that quantizing has kernels for; further ones run those of the nearest below.
ISAS = [isa for isa in (_core.Isa.portable, _core.Isa.avx2, _core.Isa.avx512) if _core.supported(isa)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def integer_grid(bits: int, full: bool) -> DType:
    return type("Any", (IntegerGrid,), {"name": "any", "bits": bits, "full_range": full})()


def codebook(bits: int, table: list[float]) -> DType:
    return type("Any", (Codebook,), {"name": "any", "bits": bits, "table": tuple(table)})()


BUILT_IN = [registry().dtype(name) for name in ("int8", "int4_clip", "int4_fullrange", "nf4", "fp4_e2m1")]


@st.composite
def grids(draw: st.DrawFn) -> DType:
    """Built-in, and any that a stranger could write: unsorted, with twins, of any scale."""
    kind = draw(st.sampled_from(["built-in", "integer", "book", "small whole levels"]))
    if kind == "built-in":
        return draw(st.sampled_from(BUILT_IN))
    if kind == "integer":
        return integer_grid(draw(st.integers(2, 8)), draw(st.booleans()))
    bits = draw(st.integers(1, 8))
    level = st.integers(-4, 4).map(float) if "whole" in kind else st.floats(-(2.0**100), 2.0**100, width=32)
    table = draw(st.lists(level, min_size=2, max_size=min(16, 2**bits)).filter(any))
    return codebook(bits, table)


@st.composite
def schemes(draw: st.DrawFn, grid: DType) -> Scheme:
    return Scheme(
        grid.name,
        group_size=draw(st.sampled_from([-1, 1, 3, 7, 16, 20, 32, 48, 64, 100, 128])),
        symmetric=not grid.has_asymmetric or draw(st.booleans()),
        scale_dtype=draw(st.sampled_from(["fp32", "fp16", "bf16"])),
    )


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    """Of every magnitude down to subnormal, with ties, zeros, and groups of one sign."""
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 290))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["normal", "tiny", "ties", "any bits", "mixed", "sparse", "one sign"]))
    normal = random.standard_normal((rows, columns)).astype(np.float32)
    if kind == "tiny":
        normal *= np.float32(10.0 ** random.integers(-45, 5))
    elif kind == "ties":
        normal = (random.integers(-16, 17, (rows, columns)) / 2).astype(np.float32)
    elif kind == "any bits":
        normal = random.integers(0, 2**32, (rows, columns), dtype=np.uint32).view(np.float32)
    elif kind == "mixed":
        normal *= (10.0 ** random.integers(-44, 3, (rows, columns))).astype(np.float32)
    elif kind == "sparse":
        normal *= random.random((rows, columns)) < 0.1
    elif kind == "one sign":
        normal = np.abs(normal) * np.float32(random.choice([-1, 1]))
    weight = torch.from_numpy(normal).to(draw(st.sampled_from(FLOATS)))
    return torch.nan_to_num(weight, 0, 0, 0)


def by_torch(
    rows: torch.Tensor, dtype: DType, scheme: Scheme, ratios: tuple[float, ...] = (1.0,), importance=None
) -> tuple[torch.Tensor, GroupParams]:
    return round_rows(rows, dtype, scheme, _fit_by_ratios(dtype, scheme, rows.shape[1], ratios, importance))


def differences(mine: tuple[torch.Tensor, GroupParams] | None, theirs: tuple[torch.Tensor, GroupParams]) -> list[str]:
    assert mine is not None
    found = []
    fit = torch.isfinite(theirs[1].scale)
    if not torch.equal(fit, torch.isfinite(mine[1].scale)):
        found.append("which scales are finite")
    if not bool(fit.all()):
        return found  # an error; codes are not looked at
    if not torch.equal(mine[1].scale.view(torch.int32), theirs[1].scale.view(torch.int32)):
        found.append("scales")
    if (mine[1].zero is None) != (theirs[1].zero is None) or (
        mine[1].zero is not None and not torch.equal(mine[1].zero, theirs[1].zero)
    ):
        found.append("zeros")
    if not torch.equal(mine[0], theirs[0]):
        found.append("codes")
    return found


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
class TestBits:
    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_nearest(self, isa, data):
        grid, weight = data.draw(grids()), data.draw(weights())
        scheme = data.draw(schemes(grid))
        mine = encode.NativeQuantizing(isa).nearest(weight, grid, scheme, (1.0,), None)
        assert differences(mine, by_torch(weight, grid, scheme)) == []

    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), ratios=st.lists(st.floats(0.3, 1.1), min_size=1, max_size=6), weighted=st.booleans())
    def test_the_search_for_a_ratio(self, isa, data, ratios, weighted):
        grid, weight = data.draw(grids()), data.draw(weights())
        scheme = data.draw(schemes(grid))
        importance = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(0)) if weighted else None
        mine = encode.NativeQuantizing(isa).nearest(weight, grid, scheme, tuple(ratios), importance)
        assert differences(mine, by_torch(weight, grid, scheme, tuple(ratios), importance)) == []

    @settings(max_examples=100, deadline=None)
    @given(data=st.data(), double_quant=st.booleans())
    def test_square_errors(self, isa, data, double_quant):
        grid, weight = data.draw(grids()), data.draw(weights())
        scheme = data.draw(schemes(grid))
        packed, params = by_torch(weight, grid, scheme)
        if not bool(torch.isfinite(params.scale).all()):
            return
        q = QTensor.of_packed(grid, scheme, tuple(weight.shape), packed, params)
        for mine, theirs in zip(
            encode.NativeQuantizing(isa).square_error(weight, q), square_sums(weight, q), strict=True
        ):
            assert torch.equal(mine.view(torch.int32), theirs.view(torch.int32))

    def test_every_float16(self, isa):
        """Widening is exact: each number is nearest to itself, times a scale of one."""
        half = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
        weight = half[torch.isfinite(half)].view(-1, 2048)
        scheme = Scheme("int8", group_size=1, scale_dtype="fp32")
        mine = encode.NativeQuantizing(isa).nearest(weight, BUILT_IN[0], scheme, (1.0,), None)
        assert differences(mine, by_torch(weight, BUILT_IN[0], scheme)) == []


class TestWhatItTakes:
    """Where it answers None, PyTorch does the work."""

    def nearest(self, weight: torch.Tensor, dtype: DType) -> object:
        return encode.NativeQuantizing().nearest(weight, dtype, Scheme(dtype.name), (1.0,), None)

    def test_all_built_in_grids(self):
        assert all(self.nearest(torch.ones(2, 40), dtype) is not None for dtype in BUILT_IN)

    @pytest.mark.parametrize("step", ["fit", "encode"])
    @pytest.mark.parametrize("base", [type(BUILT_IN[0]), type(BUILT_IN[3])], ids=["integer", "codebook"])
    def test_no_grid_that_computes_in_its_own_way(self, base, step):
        own = type("Own", (base,), {step: lambda self, *a, **k: getattr(super(type(self), self), step)(*a, **k)})()
        assert self.nearest(torch.ones(2, 40), own) is None

    def test_no_table_of_more_than_16_levels(self):
        assert self.nearest(torch.ones(2, 40), codebook(5, [float(i) for i in range(17)])) is None

    @pytest.mark.parametrize(
        "weight", [torch.ones(2, 40, dtype=torch.float64), torch.ones(0, 40)], ids=["float64", "empty"]
    )
    def test_no_other_weights(self, weight):
        assert self.nearest(weight, BUILT_IN[0]) is None

    def test_no_permuted_weight_when_errors_are_measured(self):
        weight = torch.randn(4, 40)
        q = quantize_nearest(weight, BUILT_IN[0], Scheme("int8"), name="w")
        permuted = QTensor(q.dtype, q.scheme, q.shape, q.codes, q.scales, order=torch.arange(40, dtype=torch.int32))
        assert encode.NativeQuantizing().square_error(weight, q) is not None
        assert encode.NativeQuantizing().square_error(weight, permuted) is None


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 1), (1000, 700), (3, 200_000)], ids=str)
def test_threads_and_pieces_do_not_matter(shape, threads):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    scheme = Scheme("nf4", group_size=48)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        mine = encode.NativeQuantizing().nearest(weight, BUILT_IN[3], scheme, (1.0,), None)
    finally:
        torch.set_num_threads(before)
    assert differences(mine, by_torch(weight, BUILT_IN[3], scheme)) == []


@pytest.mark.parametrize("layout", ["transposed", "a slice of columns", "expanded"])
def test_strides_do_not_matter(layout):
    weight = {
        "transposed": torch.randn(50, 6).T,
        "a slice of columns": torch.randn(6, 90)[:, 13:63],
        "expanded": torch.randn(1, 50).expand(6, 50),
    }[layout]
    scheme = Scheme("int8", symmetric=False)
    mine = encode.NativeQuantizing().nearest(weight, BUILT_IN[0], scheme, (1.0,), None)
    assert differences(mine, by_torch(weight.clone(), BUILT_IN[0], scheme)) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("dtype", BUILT_IN, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("kind", FLOATS, ids=str)
def test_a_bad_weight_is_found_where_it_is(value, dtype, kind):
    weight = torch.randn(7, 100, generator=torch.Generator().manual_seed(0)).to(kind)
    weight[3, 99] = value
    with pytest.raises(WeightError, match=rf"w: weight \[3, 99\] is {value}"):
        quantize_nearest(weight, dtype, Scheme(dtype.name), name="w")


@pytest.mark.parametrize(
    "wrong", [{"group": 0}, {"group": 41}, {"bits": 0}, {"bits": 9}, {"codes": (2, 19)}, {"scales": (2, 3)}]
)
def test_sizes_that_do_not_fit_are_refused(wrong):
    codes, scales = (
        torch.empty(wrong.get("codes", (2, 20)), dtype=torch.uint8),
        torch.empty(wrong.get("scales", (2, 2))),
    )
    with pytest.raises(_core.Error):
        _core.nearest(
            torch.ones(2, 40), wrong.get("group", 32), wrong.get("bits", 4), False, None, _core.Float.f16, [1.0], None,
            codes, scales, None, 1, None,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", ["int4_clip", "nf4"])
def test_a_checkpoint_has_the_same_bytes_without_it(dtype, tmp_path, monkeypatch):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    made = {}
    try:
        for plugins in ("", "no:native"):
            monkeypatch.setenv("WOQFX_PLUGINS", plugins)
            registry.cache_clear()
            assert registry().names("accelerator") == ([] if plugins else ["native"])
            out = tmp_path / f"out-{plugins}"
            woqfx.quantize(tmp_path / "model", dtype=dtype, double_quant=True, options={"mse_range": True}, out=out)
            made[plugins] = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    finally:
        monkeypatch.undo()
        registry.cache_clear()
    assert made[""] == made["no:native"]
    assert made[""]["model.safetensors"]


@given(st.lists(st.floats(-1024, 1024, width=32), min_size=1, max_size=70))
def test_the_sum_by_halves_is_a_sum(numbers):
    exact = sum(numbers)
    assert float(sum_by_halves(torch.tensor(numbers))) == pytest.approx(
        exact, abs=1e-6 * sum(map(abs, numbers)) + 1e-30
    )
