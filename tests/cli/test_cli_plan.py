"""`woqfx plan`: says what quantize would do, and refuses what quantize would refuse."""

from __future__ import annotations

import json

import pytest

import woqfx


def row(stdout: str, start: str) -> str:
    (found,) = [line for line in stdout.splitlines() if line.strip().startswith(start)]
    return found


def test_like_layers_are_one_line(run, model_folder):
    result = run("plan", model_folder, "--dtype", "nf4")
    assert result.exit_code == 0
    line = row(result.stdout, "model.layers.{0-1}.self_attn.q_proj")
    assert "x2" in line
    assert "64 x 64" in line
    assert "nf4 group 32" in line
    assert "4.50" in line  # 4 bits, and a scale of 16 bits for each 32 weights
    assert "embeddings are kept" in row(result.stdout, "model.embed_tokens")


def test_all_layers_one_by_one(run, model_folder):
    result = run("plan", model_folder, "--all")
    assert [row(result.stdout, f"model.layers.{n}.self_attn.q_proj") for n in (0, 1)]


def test_the_rule_that_won_is_named(run, model_folder):
    result = run("plan", model_folder, "--rule", "*.down_proj=int8", "--rule", "re:.*layers[.]1[.].*=keep")
    assert "rule *.down_proj=dtype:int8" in row(result.stdout, "model.layers.0.mlp.down_proj")
    assert "rule re:.*layers[.]1[.].*=keep" in row(result.stdout, "model.layers.1.mlp.down_proj")


def test_json_is_the_whole_plan(run, model_folder):
    flags = ["--dtype", "int8", "--group-size", "-1", "--asym", "--scale-dtype", "bf16", "--mse-range"]
    found = json.loads(run("plan", model_folder, *flags, "--json").stdout)
    plan = woqfx.plan(
        model_folder,
        dtype="int8",
        group_size=-1,
        symmetric=False,
        scale_dtype="bf16",
        options={"mse_range": True},
    )
    measured = {"seconds", "memory"}
    assert {k: v for k, v in found.items() if k not in measured} == {
        k: v for k, v in plan.to_json().items() if k not in measured
    }


def test_every_problem_at_once_and_2(run, model_folder):
    result = run("plan", model_folder, "--dtype", "nf5", "--backend", "torch_gpu", "--rule", "nothing=keep")
    assert result.exit_code == 2
    assert "did you mean nf4" in result.stderr
    assert "did you mean torch_cpu" in result.stderr
    assert "matches no layer" in result.stderr
    assert "bits per weight" not in result.stdout


def test_problems_in_json_are_2_too(run, model_folder):
    result = run("plan", model_folder, "--dtype", "nf4", "--asym", "--json")
    assert result.exit_code == 2
    assert "no asymmetric form" in json.loads(result.stdout)["problems"][0]


@pytest.mark.parametrize("arguments", [["--group-size", "many"], ["--scale-dtype", "fp8"], ["--no-such-flag"]], ids=str)
def test_a_flag_that_cannot_be_meant_is_a_usage_error(run, model_folder, arguments):
    result = run("plan", model_folder, *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


def test_a_model_that_is_not_there(run, tmp_path):
    result = run("plan", tmp_path / "nothing")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
