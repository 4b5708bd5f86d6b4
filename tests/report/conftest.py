"""Checkpoints with reports that are written by hand, so that what is shown can be held against what is known."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tiny_models import tiny_model

import woqfx

BLOCKS = [
    {
        "name": f"model.layers.{number}",
        "error": {"nearest": 0.04 / (number + 1), "transform": 0.03 / (number + 1), "round": 0.01 / (number + 1)},
        "feeds": [
            {"name": "input_layernorm", "by": "awq", "used": True, "alpha": 0.25 + number / 2, "producers": []},
            {"name": "v_proj", "by": "awq", "used": number == 0, "reason": "it changes the output", "alpha": 0.5},
        ],
        "notes": {"steps": 200},
        "layers": {
            "self_attn.q_proj.weight": {
                "tokens": 1234,
                "weight_error": {"nearest": 0.008, "transform": 0.009, "round": 0.0123},
                "output_error": {"nearest": 0.002, "transform": 0.0015, "round": 0.001},
                "notes": {"clip": [0.8, 0.9], "why": "as told"},
            },
            "mlp.experts.down_proj": {
                "tokens": 900,
                "weight_error": {"nearest": 0.008, "round": 0.01},
                "output_error": {"nearest": 0.004, "round": 0.006},
                "notes": {},
                "experts": [{"tokens": 900}, {"tokens": 3, "fallback": "3 tokens are too few"}],
            },
        },
    }
    for number in range(2)
]
TIMES = [{"name": f"model.layers.{number}", "seconds": 4.5 + number, "memory": 1_500_000_000} for number in range(2)]
REQUEST = {"algorithm": "awq+gptq", "scheme": {"dtype": "nf4"}, "calibration": {"data": "python-docs", "samples": 32}}


@pytest.fixture(scope="session")
def plain_bytes(tmp_path_factory) -> dict[str, bytes]:
    """The files of a checkpoint that was rounded to nearest."""
    path = tmp_path_factory.mktemp("plain")
    tiny_model("llama").save_pretrained(path / "model")
    woqfx.quantize(path / "model", out=path / "out", dtype="nf4", rules=["*.down_proj=int8"], progress="none")
    return {file.name: file.read_bytes() for file in (path / "out").iterdir()}


@pytest.fixture
def plain(plain_bytes, tmp_path) -> Path:
    """A checkpoint whose algorithm looked at no data."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name, data in plain_bytes.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def told(plain):
    """Puts a report and timings into the checkpoint, as its manifest would have them."""

    def write(blocks=BLOCKS, times=TIMES, request=REQUEST, report=None, timings=None) -> Path:
        report = {"woqfx_report": 1, "request": request, "blocks": blocks} if report is None else report
        data = report if isinstance(report, bytes) else json.dumps(report).encode()
        manifest = json.loads((plain / "woqfx.json").read_bytes())
        manifest["files"]["woqfx-report.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["request"] = request
        (plain / "woqfx.json").write_text(json.dumps(manifest))
        (plain / "woqfx-report.json").write_bytes(data)
        timings = {"woqfx_timings": 1, "blocks": times} if timings is None else timings
        (plain / "woqfx-timings.json").write_text(json.dumps(timings))
        return plain

    return write
