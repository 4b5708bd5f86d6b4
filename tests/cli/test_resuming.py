"""The command that goes on with a stopped run asks for what the journal says was asked for."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from woqfx import CalibrationRequest, Rule, Scheme
from woqfx.cli.resuming import command_of
from woqfx.errors import CheckpointError
from woqfx.inspection import UnfinishedRun
from woqfx.request import Request


def words(request: dict[str, object]) -> list[str]:
    return shlex.split(command_of(UnfinishedRun(Path("my out"), "a model", request, 0, 0, 0, 0, 0)))


def test_calibrated_quantizing():
    request = Request(
        Scheme("int4_clip", group_size=64, symmetric=False, double_quant=True),
        "awq+gptq",
        rules=(Rule("*.down_proj", {"dtype": "int8"}),),
        options={"clip": False, "gptq.damp_percent": 0.05},
        calibration=CalibrationRequest(Path("texts/chats.jsonl"), samples=8, seq_len=64, seed=3, column="words"),
        propagate="float",
    )
    expected = (
        "woqfx quantize 'a model' --algorithm awq+gptq --dtype int4_clip --group-size 64 --scale-dtype fp16 "
        "--compute-dtype fp32 --asym --double-quant --no-clip --option gptq.damp_percent=0.05 "
        "--rule '*.down_proj=dtype:int8' --calibration chats.jsonl --samples 8 --seq-len 64 --calibration-seed 3 "
        "--column words --propagate float --out 'my out'"
    )
    assert words(request.to_json()) == shlex.split(expected)


def test_converting():
    assert words({"format": "gguf", "requantize": True}) == [
        *("woqfx", "convert", "a model", "--to", "gguf", "--requantize", "--out", "my out")
    ]


@pytest.mark.parametrize(
    "asked",
    [{"scheme": 6}, {"options": ["a"]}, {"rules": "keep"}, {"calibration": 1}, {"tuning": 2}],
    ids=lambda asked: next(iter(asked)),
)
def test_a_forged_request_is_refused_with_a_remedy(asked):
    with pytest.raises(CheckpointError, match=rf"says of {next(iter(asked))} .*--overwrite"):
        words(asked)
