"""Which weights the native kernels take, and what is said when they take one or not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import woqfx
from woqfx import CPU, Codebook, IntegerGrid, Scheme
from woqfx_native import _core, support

OLD = CPU("x86_64", "of 2003", frozenset())
HASWELL = frozenset({"avx2", "fma", "f16c"})
SKYLAKE = HASWELL | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
ICE_LAKE = SKYLAKE | {"avx512_vnni"}
ZEN4 = ICE_LAKE | {"avx512_bf16"}


class Grid5(IntegerGrid):
    name, bits = "grid5", 5


class Book16(Codebook):
    name, bits = "book16", 4
    table = tuple(float(i) for i in range(-8, 8))


class Book17(Codebook):
    name, bits = "book17", 5
    table = tuple(float(i) for i in range(-8, 9))


class Squares(IntegerGrid):
    """A grid that is none: its codes are not equal steps."""

    name, bits = "squares", 4

    def decode(self, codes, params):
        return super().decode(codes, params) ** 2


@pytest.mark.parametrize(
    ("features", "isa"),
    [
        (frozenset(), "portable"),
        (HASWELL - {"fma"}, "portable"),
        (HASWELL, "avx2"),
        (HASWELL | {"avx_vnni"}, "avx_vnni"),
        (SKYLAKE, "avx512"),
        (ICE_LAKE, "avx512_vnni"),
        (ZEN4, "avx512_bf16"),
        (ZEN4 | {"avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}, "amx"),
    ],
    ids=["none", "no-fma", "haswell", "alder-lake", "skylake", "ice-lake", "zen4", "sapphire-rapids"],
)
def test_the_best_instruction_set_of_a_cpu(features, isa):
    assert support.isa_of(CPU("x86_64", "a model", features)) == isa
    assert support.isa_of(CPU("aarch64", "a model", features)) == "portable"


def test_features_and_cpuid_agree_about_this_cpu():
    best = max((isa for isa in _core.Isa if _core.supported(isa)), key=lambda isa: isa.value)
    assert support.isa_of(woqfx.this_cpu()) == best.name


@pytest.mark.parametrize("compute", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("dtype", [Grid5(), Book16(), woqfx.registry().dtype("nf4")], ids=lambda d: d.name)
def test_grids_are_data(dtype, compute):
    answer = support.support(Scheme(dtype.name, compute_dtype=compute), dtype, (8, 64), woqfx.this_cpu())
    assert answer.ok and answer.kernel.startswith("native ") and _core.best_isa().name in answer.kernel


@pytest.mark.parametrize(
    ("dtype", "scheme", "shape", "reason"),
    [
        (Book17(), {}, (8, 64), "17 levels in 5 bits"),
        (Squares(), {}, (8, 64), "in a way of its own"),
        (Grid5(), {"compute_dtype": "fp64"}, (8, 64), "compute dtype fp64"),
        (Grid5(), {}, (2, 2, 8, 64), "4 dimensions"),
        (Grid5(), {"group_size": 70_000}, (8, 200_000), "groups of up to 65536"),
    ],
    ids=["levels", "decode", "compute", "dimensions", "group"],
)
def test_the_reference_runs_the_rest_and_says_why(dtype, scheme, shape, reason):
    answer = support.support(Scheme(dtype.name, **scheme), dtype, shape, woqfx.this_cpu())
    assert not answer.ok and reason in answer.reason
    backend = woqfx.registry().backend("torch_cpu")
    told = backend.supports(Scheme(dtype.name, **scheme), dtype, shape, woqfx.this_cpu())
    assert told.ok and told.kernel == "reference" and reason in told.reason


def test_one_group_of_a_whole_row_may_be_long():
    scheme = Scheme("grid5", group_size=-1)
    assert support.support(scheme, Grid5(), (2, 200_000), woqfx.this_cpu()).ok


def test_without_a_compiler_the_reference_runs_and_says_so(monkeypatch):
    monkeypatch.setattr(support, "find_spec", lambda name: None)
    model = woqfx.quantize(torch.nn.Sequential(torch.nn.Linear(64, 8)), progress="none")
    assert model[0].weight.kernel == "reference"
    answer = woqfx.registry().backend("torch_cpu").supports(Scheme("nf4"), Book16(), (8, 64), OLD)
    assert "without its native kernels" in answer.reason and "compiler" in answer.reason


PACKING = (
    "import torch, woqfx; m = woqfx.quantize(torch.nn.Sequential(torch.nn.Linear(64, 8)), progress='none');"
    "print(m[0].weight.kernel)"
)
QUANTIZING = (
    "import torch, woqfx; grid = woqfx.registry().dtype('int8');"
    "woqfx.quantize_nearest(torch.ones(8, 64), grid, woqfx.Scheme('int8'), name='w')"
)


def run(isa: str, code: str = PACKING) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "WOQFX_ISA": isa}, capture_output=True, text=True
    )


@pytest.mark.slow
def test_an_instruction_set_can_be_asked_for():
    assert run("portable").stdout.startswith("native portable")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("isa", "message"), [("sse9", "no instruction set"), ("amx", "this CPU does not have")], ids=["unknown", "absent"]
)
@pytest.mark.parametrize("code", [PACKING, QUANTIZING], ids=["packing", "quantizing"])
def test_asking_for_one_that_is_not_there_is_an_error(isa, message, code):
    if isa in _core.Isa.__members__ and _core.supported(_core.Isa[isa]):
        pytest.skip("this CPU has all of them")
    done = run(isa, code)
    assert done.returncode != 0 and message in done.stderr.splitlines()[-1]
