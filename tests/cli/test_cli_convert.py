"""`woqfx convert` and `woqfx export`."""

from __future__ import annotations

import json

import pytest
from folders_of_models import saved, write


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return write(saved("llama", folder), folder / "out", dtype="nf4")


def test_there_and_back(run, checkpoint, tmp_path):
    refused = run("export", checkpoint, "--format", "awq", "--out", tmp_path / "awq")
    assert refused.exit_code == 2
    assert "nf4 is not a grid of integers of 4 bits" in refused.stderr
    assert not (tmp_path / "awq").exists()
    done = run(
        *("export", checkpoint, "--format", "awq", "--requantize", "--progress", "none", "--out", tmp_path / "awq")
    )
    assert (done.exit_code, done.stderr) == (0, "")
    assert "0 of 14 quantized weights" in done.stdout
    assert "14 weights were quantized again; the worst" in done.stdout
    shown = run("inspect", tmp_path / "awq")
    assert "int4_clip" in shown.stdout
    assert "awq: version gemm, bits 4, group_size 32" in shown.stdout
    back = run("convert", tmp_path / "awq", "--out", tmp_path / "back")
    said = back.stderr.splitlines()
    assert (back.exit_code, said[0], len(said)) == (0, "converting 21 tensors", 2)
    assert "14 of 14 quantized weights" in back.stdout
    again = run("convert", tmp_path / "awq", "--out", tmp_path / "back")
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr


def test_progress_as_json(run, checkpoint, tmp_path):
    done = run("convert", checkpoint, "--out", tmp_path / "copy", "--progress", "json")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["RunStarted", "RunFinished"]
    assert events[0]["doing"] == "converting"
    assert events[0]["tensors"] == sum(event["event"] == "TensorDone" for event in events)


def test_an_unknown_format(run, checkpoint, tmp_path):
    refused = run("export", checkpoint, "--format", "exl2", "--out", tmp_path / "exl2")
    assert refused.exit_code == 2
    assert "no format 'exl2'" in refused.stderr
    assert "gptq" in refused.stderr


def test_a_name_on_the_hub(run, checkpoint, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(checkpoint))
    done = run("export", "org/name", "--format", "bitsandbytes", "--requantize", "-q", "--out", tmp_path / "out")
    assert (done.exit_code, done.stderr) == (0, "")
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_name_without_a_network_says_what_was_tried(run, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused = run("convert", "org/no-such-model", "--out", tmp_path / "out")
    assert refused.exit_code == 1
    assert "no folder 'org/no-such-model' here, and the Hugging Face Hub did not give it" in refused.stderr.replace(
        "give org/no-such-model", "give it"
    )
    assert not (tmp_path / "out").exists()
