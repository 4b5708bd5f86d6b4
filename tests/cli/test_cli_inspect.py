"""`woqfx inspect`: what a checkpoint holds, told from its headers."""

from __future__ import annotations

import json
import shutil

import pytest

import woqfx
from woqfx import events
from woqfx.disk.checkpoint import Checkpoint


def test_like_weights_are_one_line_with_the_range_of_their_errors(run, checkpoint):
    result = run("inspect", checkpoint)
    errors = Checkpoint(checkpoint).manifest.errors
    (line,) = [line for line in result.stdout.splitlines() if "mlp.up_proj" in line]
    low, high = sorted(errors[f"model.layers.{n}.mlp.up_proj.weight"] for n in (0, 1))
    assert "model.layers.{0-1}.mlp.up_proj " in line
    assert f"{low:.4f}" in line
    assert f"{high:.4f}" in line
    assert "8.50" in line


def test_all_weights_one_by_one(run, checkpoint):
    result = run("inspect", checkpoint, "--all")
    assert sum("_proj" in line for line in result.stdout.splitlines()) == 14


def test_the_kernel_here_and_why(run, checkpoint):
    woqfx_backend = woqfx.registry().backend("torch_cpu")
    dtype = woqfx.registry().dtype("int8")
    from woqfx.cpu import this_cpu

    support = woqfx_backend.supports(woqfx.Scheme("int8"), dtype, (64, 64), this_cpu())
    assert f"torch_cpu, kernel {support.kernel}: {support.reason}" in run("inspect", checkpoint).stdout


def test_json_agrees_with_the_files(run, checkpoint):
    found = json.loads(run("inspect", checkpoint, "--json").stdout)
    assert found["finished"] is True
    assert found["bytes"] == sum(file.stat().st_size for file in checkpoint.iterdir())
    stored = Checkpoint(checkpoint)
    assert found["quantized_bytes"] == sum(stored.read_weight(name).nbytes for name in stored.weights)
    assert {weight["name"] for weight in found["weights"]} == set(stored.weights)
    assert found["kept_tensors"] == len(stored.kept)
    assert found["request"]["algorithm"] == "rtn"


def test_verify_finds_one_changed_byte(run, checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    assert run("inspect", copy, "--verify").exit_code == 0
    assert json.loads(run("inspect", copy, "--verify", "--json").stdout)["verified"] is True
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert run("inspect", copy).exit_code == 0
    result = run("inspect", copy, "--verify")
    assert result.exit_code == 1
    assert str(weights) in result.stderr


def test_a_backend_that_cannot_run_it_says_why(run, checkpoint):
    class Narrow(type(woqfx.registry().backend("torch_cpu"))):
        name = "narrow"

        def supports(self, scheme, dtype, shape, cpu):
            return woqfx.Support(ok=scheme.dtype != "int8", reason="it has no kernel for int8", remedy="use nf4")

    class Plugin:
        @woqfx.hookimpl
        def woqfx_backends(self):
            return [Narrow()]

    woqfx.register(Plugin(), "narrow")
    try:
        result = run("inspect", checkpoint, "--backend", "narrow")
    finally:
        woqfx.unregister("narrow")
    assert "narrow cannot: it has no kernel for int8; use nf4" in result.stdout


@pytest.fixture
def stopped(run, model_folder, tmp_path):
    """An output folder whose run was stopped after everything but the end."""

    class Plugin:
        @woqfx.hookimpl
        def woqfx_event(self, event: events.Event) -> None:
            if isinstance(event, events.Committed):
                raise KeyboardInterrupt

    out = tmp_path / "out"
    woqfx.register(Plugin(), "stopping")
    try:
        run("quantize", model_folder, "-q", "--out", out)
    finally:
        woqfx.unregister("stopping")
    return out


def test_an_unfinished_run_says_how_far_it_is(run, stopped, model_folder):
    found = json.loads(run("inspect", stopped, "--json").stdout)
    assert found["finished"] is False
    assert found["source"] == str(model_folder)
    assert found["tensors_done"] == 21
    assert found["bytes_done"] == found["bytes_expected"]
    assert found["request"]["scheme"]["dtype"] == "int4_fullrange"


def test_verify_refuses_what_is_unfinished(run, stopped):
    result = run("inspect", stopped, "--verify")
    assert result.exit_code == 1
    assert "unfinished" in result.stderr


def test_what_is_no_checkpoint(run, model_folder):
    result = run("inspect", model_folder)
    assert result.exit_code == 1
    assert "not a woqfx checkpoint" in result.stderr
