"""The flags about calibration data, and --target-bits: what they become, and what is said when they cannot be met."""

from __future__ import annotations

import json

import click
import pytest

from woqfx.cli.calibration import FLAGS, gather

GIVEN = {
    "calibration": "texts.jsonl",
    "samples": 9,
    "seq_len": 32,
    "calibration_seed": 5,
    "column": "body",
    "split": "test",
}


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"body": f"This is text number {n}. " * 5}) + "\n" for n in range(50)))
    return path


def test_they_become_a_request():
    params = {**GIVEN, "propagate": "float"}
    request = gather(params)
    assert params == {"propagate": "float"}
    assert (request.data, request.samples, request.seq_len, request.seed) == ("texts.jsonl", 9, 32, 5)
    assert (request.column, request.split, request.tokenizer) == ("body", "test", None)


def test_the_defaults_are_those_of_the_request():
    from woqfx.calibration import CalibrationRequest

    defaults = {}
    click.Command("any", params=list(FLAGS), callback=lambda **params: defaults.update(params)).main(
        [], standalone_mode=False
    )
    found, usual = gather(defaults), CalibrationRequest()
    assert [getattr(found, name) for name in vars(usual)] == list(vars(usual).values())


def test_help_lists_the_sets(run):
    shown = run("quantize", "--help").stdout
    assert "Names for --calibration:" in shown and "python-docs" in shown and "wikitext2" in shown


def test_numbers_that_cannot_be_meant(run, model_folder):
    result = run("plan", model_folder, "--samples", 0)
    assert result.exit_code == 2 and "samples must be a whole number from 1, not 0" in result.stderr


@pytest.fixture
def five_bits(texts):
    """The flags for a target."""
    data = ("--calibration", texts, "--column", "body", "--samples", 9, "--seq-len", 32)
    return ("--dtype", "nf4", "--target-bits", 5, *data)


def test_a_plan_with_a_target(run, model_folder, five_bits):
    result = run("plan", model_folder, *five_bits, "--json")
    plan = json.loads(result.stdout)
    assert 4.7 < plan["bits_per_weight"] <= 5 and plan["rules"]
    shown = run("plan", model_folder, *five_bits).stdout
    assert "its own" in shown and "rule model.layers" not in shown


def test_a_checkpoint_with_a_target(run, model_folder, five_bits, tmp_path):
    result = run("quantize", model_folder, "--out", tmp_path / "out", *five_bits)
    assert result.exit_code == 0, result.stderr
    assert "its own" in result.stdout and "bits per weight" in result.stdout
    manifest = json.loads((tmp_path / "out" / "woqfx.json").read_text())
    assert {scheme["dtype"] for scheme in manifest["schemes"]} <= {"nf4", "int8"}
    assert len(manifest["schemes"]) > 1


def test_too_few_texts_for_a_target(run, model_folder, texts):
    result = run("plan", model_folder, "--target-bits", 5, "--calibration", texts, "--column", "body", "--seq-len", 64)
    assert result.exit_code == 2 and "ask for samples=" in result.stderr


def test_a_target_that_cannot_be_met(run, model_folder, texts):
    flags = ("--target-bits", 2, "--calibration", texts, "--column", "body", "--samples", 9, "--seq-len", 32)
    result = run("plan", model_folder, *flags)
    assert result.exit_code == 2 and "target_bits 2 cannot be reached" in result.stderr
