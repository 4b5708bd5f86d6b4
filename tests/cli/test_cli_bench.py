"""`woqfx bench`."""

from __future__ import annotations

import json

import pytest

import woqfx
from woqfx import bench, bench_peers
from woqfx.cpu import this_cpu
from woqfx.roofline import Roofline

SMALL = ("--shape", "64x96", "--seconds", "0.001", "--threads", "1")


class Slow(type(woqfx.registry().backend("torch_cpu"))):
    """A stranger's backend, which takes one dtype, and whose machine is easily described."""

    name = "slow"

    def supports(self, scheme, dtype, shape, cpu):
        if scheme.dtype != "int8":
            return woqfx.Support(False, reason="only int8 is slow enough", remedy="int8")
        return super().supports(scheme, dtype, shape, cpu)

    def roofline(self, threads):
        return Roofline(1e6 * threads, {"fp32": 1e9}, "a guess")


class Plugin:
    @woqfx.hookimpl
    def woqfx_backends(self):
        return [Slow()]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for module in (bench, bench_peers):
        monkeypatch.setattr(module, "copies_of", lambda nbytes: 2)
    monkeypatch.setattr(bench, "_REST_SECONDS", 0)
    monkeypatch.setattr(bench, "_ROUNDS", 1)


@pytest.fixture
def slow():
    woqfx.register(Plugin(), "slow")
    yield
    woqfx.unregister("slow")


@pytest.mark.usefixtures("slow")
def test_any_backend_is_measured_and_held_against_its_machine(run):
    result = run("bench", *SMALL, "--backend", "slow", "--rows", 1, "--rows", 4, "--no-peers", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["machine"]["threads"] == 1
    found = [(one["dtype"], one["compute_dtype"], one["rows"]) for one in report["figures"]]
    assert found == [("int8", compute, rows) for compute in ("bf16", "fp32", "int8") for rows in (1, 4)]
    for one in report["figures"]:
        assert one["limits"]["how"] == "a guess"
        assert one["nbytes"] == 64 * 96 + 64 * 3 * 2
        assert one["operations"] == 2 * one["rows"] * 64 * 96
        assert one["share"] == pytest.approx(one["nbytes"] / 1e6 / one["seconds"])
        assert one["bound"] == "memory"
    refused = {one["what"]: one["why"] for one in report["refused"]}
    assert refused["nf4 group 32 in bf16"] == "only int8 is slow enough"
    assert len(refused) == 3 * (len(woqfx.registry().names("dtype")) - 1)


@pytest.mark.usefixtures("slow")
def test_the_table_names_times_shares_and_kernels(run):
    result = run("bench", *SMALL, "--backend", "slow", "--compute-dtype", "fp32", "--rows", 1)
    assert result.exit_code == 0, result.stderr
    ours = next(line for line in result.stdout.splitlines() if "woqfx" in line)
    assert ours.split()[:5] == ["fp32", "32", "1", "int8", "woqfx"]
    assert "memory" in ours and "%" in ours
    assert "torch dense" in result.stdout
    assert "0.0 GB/s read" in result.stdout and "1 thread\n" in result.stdout
    assert "nf4 group 32 was not measured: only int8 is slow enough" in result.stderr


@pytest.mark.usefixtures("slow")
def test_nothing_to_show_is_no_error_of_the_program(run):
    result = run("bench", *SMALL, "--backend", "slow", "--dtype", "nf4", "--compute-dtype", "fp32", "--no-peers")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "only int8 is slow enough" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--shape", "4096"), "out_features x in_features"),
        (("--shape", "0x64"), "out_features x in_features"),
        (("--dtype", "nf5"), "did you mean nf4"),
        (("--compute-dtype", "fp23"), "fp32"),
        (("--backend", "nowhere"), "torch_cpu"),
        (("--group-size", "0"), "group_size 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_meant_is_told(run, arguments, said):
    result = run("bench", *SMALL, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_the_built_in_backend_measures_the_machine(run):
    result = run("bench", *SMALL, "--dtype", "nf4", "--compute-dtype", "int8", "--rows", 1, "--json")
    assert result.exit_code == 0, result.stderr
    (one,) = json.loads(result.stdout)["figures"]
    assert one["limits"]["read_bandwidth"] > 1e6
    scheme = woqfx.Scheme("nf4", compute_dtype="int8")
    support = (
        woqfx.registry().backend("torch_cpu").supports(scheme, woqfx.registry().dtype("nf4"), (64, 96), this_cpu())
    )
    assert one["kernel"] == support.kernel
