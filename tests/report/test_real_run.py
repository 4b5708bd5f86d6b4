"""The report of a run that really looked at data: what the engine writes is what the report reads."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import tiny_model

import woqfx
from woqfx.report import read_report, write_page

TOKENS = torch.randint(3, 128, (40, 32), generator=torch.Generator().manual_seed(0))


class Telling(woqfx.Algorithm):
    """Rounds to nearest, and tells of it."""

    name = "telling"
    needs_data = True

    def round(self, layer):
        layer.note(clip=[0.5, 1.0], largest=float(layer.weight.abs().max()))
        return super().round(layer)


class Plugin:
    @woqfx.hookimpl
    def woqfx_algorithms(self):
        return [Telling]


@pytest.fixture(scope="module", params=["llama", "mixtral", "t5"])
def run(request, tmp_path_factory):
    """A family, and the checkpoint of a tiny model of it."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param).save_pretrained(folder / "model")
    woqfx.register(Plugin(), "telling")
    try:
        woqfx.quantize(
            folder / "model",
            out=folder / "out",
            algorithm="telling",
            dtype="nf4",
            calibration=TOKENS,
            samples=40,
            seq_len=32,
            progress="none",
        )
    finally:
        woqfx.unregister("telling")
    return request.param, folder / "out"


def test_every_block_and_layer_is_told_of(run):
    family, out = run
    report = read_report(out)
    weights = set(json.loads((out / "woqfx.json").read_text())["weights"])
    told = {f"{block.name}.{layer}" for block in report.blocks for layer in block.layers}
    assert told == weights and len(report.blocks) == (4 if family == "t5" else 2)
    for block in report.blocks:
        assert list(block.error) == ["nearest", "round"] and block.error["nearest"] == block.error["round"] > 0
        assert block.seconds is not None and block.memory > 1e6
        for layer in block.layers.values():
            assert layer.weight_error["round"] == layer.weight_error["nearest"] > 0
            assert layer.output_error["round"] == pytest.approx(layer.output_error["nearest"], rel=1e-4)


def test_experts_are_counted(run):
    family, out = run
    stacks = [layer for block in read_report(out).blocks for layer in block.layers.values() if layer.experts]
    assert len(stacks) == (4 if family == "mixtral" else 0)
    for layer in stacks:
        assert sum(expert.tokens for expert in layer.experts) == TOKENS.numel() * 2  # each token has two
        assert len(layer.experts) == 4


def test_the_page_shows_what_was_noted(run):
    _, out = run
    page = write_page(read_report(out))
    assert "telling" in page and "largest, of each layer" in page and "0.75 everywhere" in page
    assert "a Tensor of the caller&#x27;s" in page  # what the calibration data were
